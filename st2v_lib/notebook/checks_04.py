"""Checkers of the exercises in notebook 04 (randomized blending). The pattern is explained in ``checks``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
def check_starts(fn: Callable) -> None:
    """``fn(num_frames, chunk, overlap)``: first frame of each chunk, so that every frame is covered.

    Chunks begin every ``chunk - overlap`` frames; when the length does not fit, the last one ends with the video. A
    video that is no longer than a chunk is one chunk.
    """
    from st2v_lib.blending import chunk_starts

    for num_frames, chunk, overlap in ((24, 24, 8), (40, 24, 8), (48, 24, 8), (80, 24, 8), (241, 24, 8), (20, 8, 4)):
        want = chunk_starts(num_frames, chunk, overlap)
        got = list(call(fn, num_frames, chunk, overlap))
        hint = f"{num_frames} frames in chunks of {chunk} that share {overlap}: expected {want}"
        if got and got[-1] + chunk < num_frames:
            hint = f"frames {got[-1] + chunk} to {num_frames - 1} belong to no chunk: nothing would denoise them"
        elif got and got[-1] + chunk > num_frames > chunk:
            hint = "the last chunk runs over the end; let it start at num_frames - chunk and overlap more"
        elif len(got) == len(want) + 1:
            hint = "one chunk too many: the one before already ends with the video"
        compare("chunk starts", got, want, hint)
    passed("starts")


@checker
def check_cut(fn: Callable) -> None:
    """``fn(overlap, law, generator)``: one cut, an int: uniform on 0..O-1 for ``"code"``, on 0..O for ``"paper"``."""
    for overlap in (1, 4, 8):
        for law in ("code", "paper"):
            generator = torch.Generator().manual_seed(overlap)
            draws = Counter(int(call(fn, overlap, law, generator)) for _ in range(2000))
            allowed = range(overlap + (law == "paper"))
            outside = sorted(set(draws) - set(allowed))
            hint = f"{law!r} with O = {overlap} allows {allowed.start} to {allowed.stop - 1}"
            assert not outside, f"cut: drew {outside}, {hint}"
            missing = sorted(set(allowed) - set(draws))
            assert not missing, f"cut: never drew {missing} in 2000 draws, {hint}"
            want = 2000 / len(allowed)
            worst = max(abs(draws[c] - want) for c in allowed)
            assert worst < 6 * want**0.5 + 1, (
                f"cut: not uniform for {law!r}, O = {overlap}: {dict(sorted(draws.items()))}"
            )
    passed("cut")


@checker
def check_blend(fn: Callable) -> None:
    """``fn(left, right, overlap, cut)``: the joined video of two chunks ``b c f h w`` that share ``overlap`` frames.

    Shared frames before ``cut`` (counted from 0) come from ``left``, the others from ``right``.
    """
    from st2v_lib.blending import blend

    generator = torch.Generator().manual_seed(5)
    for f, overlap in ((6, 2), (24, 8), (5, 4)):
        left, right = (torch.randn(1, 2, f, 2, 3, generator=generator) for _ in range(2))
        for cut in range(overlap + 1):
            want = blend([left, right], [0, f - overlap], [0, cut])
            got = call(fn, left, right, overlap, cut)
            hint = "left[: F - O + cut], then right[cut :], joined along the frames"
            if torch.is_tensor(got) and got.ndim == 5 and got.shape[2] == 2 * f:
                hint = "the shared frames are in your video twice; its length is 2 F - O"
            compare("blend", got, want, hint)
    passed("blend")
