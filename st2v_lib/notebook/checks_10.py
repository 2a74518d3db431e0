"""Exercise checkers of ``10_full_scale``: which pictures fit the enhancer, and what has to be on a card at once."""

from __future__ import annotations

from collections.abc import Callable

from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
def check_rows(fn: Callable) -> None:
    """``fn(rows)``: the rows of a latent picture on each level of the enhancer, way down and up: 7 numbers.

    Down: a 3 x 3 convolution of stride 2 with two rows of padding on each side. Up: doubled, less the first and the
    last row. Three levels down, three up.
    """
    for rows in (90, 18, 10, 2, 88, 91, 46):
        want = [rows]
        for _ in range(3):
            want.append((want[-1] + 4 - 3) // 2 + 1)
        for _ in range(3):
            want.append(2 * want[-1] - 2)
        got = call(fn, rows)
        hint = "a convolution gives (rows + 2 * padding - 3) // 2 + 1 rows; the way up is 2 * rows - 2"
        if list(got) == [rows, *(rows >> i for i in (1, 2, 3)), *(rows >> i for i in (2, 1, 0))]:
            hint = "this is the usual network, with one row of padding; the enhancer pads two"
        compare(f"rows from {rows}", list(got), want, hint)
    passed("rows")


@checker
def check_resident(fn: Callable) -> None:
    """``fn(groups, resident, offload)``: the most GB of weights on the device at the same time.

    ``groups`` and ``resident`` map names to GB; groups take turns when ``offload`` is true.
    """
    groups, resident = {"text": 0.7, "image": 1.3, "unet and cam": 4.2, "enhancer": 2.8}, {"vae": 0.2, "apm": 0.05}
    for offload, want in ((True, 4.45), (False, 9.25)):
        got = call(fn, groups, resident, offload)
        hint = "with off-loading the largest group and what is resident, without it everything"
        if isinstance(got, int | float) and abs(got - 2.8 - 0.25) < 1e-6:
            hint = "not the last group but the largest sets the peak"
        compare(f"GB with off-loading {offload}", float(got), want, hint, rtol=1e-6)
    passed("resident")
