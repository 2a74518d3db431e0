"""Exercise checkers: they take the reader's function, try it on random inputs, and teach where it goes wrong.

A checker is a plain function ``check_<name>(fn)``. It makes inputs of random shapes, asks the library for the right
answer, and hands both to ``compare`` with a hint for the most likely mistake. It prints ``PASS <name>`` at the end; the
cell that calls it in a solution notebook is tagged ``nbval-check-output``. In the exercise itself, where the function
is still empty, ``attempt(check_double, my_double)`` prints the lesson in place of a traceback. ``@checker`` makes a
lesson of an answer of the wrong kind, too: a number where a list was asked for. To add one::

    @checker
    def check_double(fn):
        '''``fn(x)``: twice ``x``, any shape.'''
        for x in random_videos():
            x = x.astype(float)
            compare("double", call(fn, x), 2 * x, hint="did you add x to itself?")
        passed("double")

``expect`` checks a single number of a notebook against the value it had when the text was written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


def passed(name: str) -> None:
    """Prints the line that a checked cell is compared by."""
    print(f"PASS {name}")


def checker(check: Callable[[Callable], None]) -> Callable[[Callable], None]:
    """Makes a checker tell the reader of an answer that it could not even compare, such as 3 in place of a list.

    An error inside the reader's own function stays what it is: its traceback shows the line. The first paragraph of the
    checker's docstring, ``fn(arguments)``: what it returns, becomes the lesson.
    """
    asked = " ".join((check.__doc__ or "").split("\n\n")[0].replace("`", "").split()).rstrip(".")

    @functools.wraps(check)
    def checked(fn: Callable) -> None:
        answers: list[Any] = []
        own: list[Exception] = []

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                answers[:] = [fn(*args, **kwargs)]
            except Exception as error:
                own.append(error)
                raise
            return answers[0]

        try:
            check(watched)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError) as error:
            if not answers or any(error is raised for raised in own):
                raise
            raise AssertionError(f"expected {asked}; got {_kind(answers[0])}") from error

    return checked


def _kind(answer: Any) -> str:
    if torch.is_tensor(answer) or isinstance(answer, np.ndarray):
        return f"{type(answer).__name__} of shape {tuple(answer.shape)}"
    text = repr(answer)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(answer).__name__})"


def attempt(check: Callable, fn: Callable) -> None:
    """Runs a checker for an exercise that may not be solved yet: prints ``PASS``, or what is still wrong.

    Args:
        check: a checker of this file.
        fn: the reader's function.
    """
    try:
        check(fn)
    except AssertionError as lesson:
        print(f"NOT YET {check.__name__.removeprefix('check_')}: {lesson}")


def expect(name: str, value: float, about: float, within: float = 0.0) -> None:
    """Prints ``PASS name`` if ``value`` is ``about ± within``; both may be nan.

    Raises:
        AssertionError: it is not; the message has all three numbers.
    """
    value, about = float(value), float(about)
    same = math.isnan(value) and math.isnan(about)
    assert same or abs(value - about) <= within, f"{name}: expected {about:g} ± {within:g}, got {value:.6g}"
    passed(name)


def call(fn: Callable, *args: Any) -> Any:
    """Calls the reader's function on copies, so that it cannot change what it is compared with.

    Raises:
        AssertionError: it is still the empty exercise, or returns nothing.
    """
    copies = [a.clone() if torch.is_tensor(a) else a.copy() if isinstance(a, np.ndarray) else a for a in args]
    try:
        result = fn(*copies)
    except NotImplementedError:
        raise AssertionError("nothing here yet: replace `raise NotImplementedError` by your code") from None
    assert result is not None, "your function returns None: is there a `return` on every path?"
    return result


def compare(name: str, got: Any, want: Any, hint: str = "", rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Compares an answer with the library's: type, shape, then values.

    Raises:
        AssertionError: naming what differs, with the hint.
    """
    tail = f" Hint: {hint}" if hint else ""
    try:
        a = np.asarray(got.detach() if torch.is_tensor(got) else got, dtype=np.float64)
    except (TypeError, ValueError):
        raise AssertionError(f"{name}: expected numbers, got {type(got).__name__}.{tail}") from None
    b = np.asarray(want.detach() if torch.is_tensor(want) else want, dtype=np.float64)
    assert a.shape == b.shape, f"{name}: expected shape {b.shape}, got {a.shape}.{tail}"
    wrong = ~np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f" at {at} ({wrong.mean():.0%} of all values differ)" if b.ndim else ""
        raise AssertionError(f"{name}: expected {b[at]:.6g}, got {a[at]:.6g}{where}.{tail}")


def random_videos(count: int = 4, seed: int = 0, smallest: int = 8) -> Iterator[np.ndarray]:
    """Noise videos of random, mostly non-square sizes, ``uint8 f h w c``; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        f, h, w = rng.integers(3, 9), *rng.integers(smallest, smallest + 17, 2)
        yield rng.integers(0, 256, (f, h, w, 3), dtype=np.uint8)


# ---------------------------------------------------------------------------------------------- 06 metrics


@checker
def check_xt_slice(fn: Callable) -> None:
    """``fn(video, row)``: pixel row number ``row`` of every frame of ``uint8 f h w c``, stacked: ``f w c``."""
    for i, video in enumerate(random_videos()):
        row = (3 * i + 1) % video.shape[1]
        got = call(fn, video, row)
        hint = "axes are f h w c; a row is one index of h, and every frame keeps its full width"
        compare("x-t slice", got, video[:, row], hint)
    passed("xt_slice")


@checker
def check_warp_error(fn: Callable) -> None:
    """``fn(second, warped, unfilled)``: mean squared difference over filled pixels and channels.

    ``second`` and ``warped`` are float ``c h w`` in 0..255, ``unfilled`` is bool ``h w``.
    """
    from st2v_lib.metrics.warp import masked_mse

    rng = np.random.default_rng(1)
    for video in random_videos(seed=1):
        second, warped = (torch.tensor(v).permute(2, 0, 1).float() for v in video[:2])
        unfilled = torch.tensor(rng.random(second.shape[1:]) < 0.4)
        warped = warped.masked_fill(unfilled, 0)
        want = masked_mse(second[None], warped[None], ~unfilled[None])
        got = call(fn, second, warped, unfilled)
        everything = float((second - warped).square().mean())
        hint = "divide by the number of known values: filled pixels times 3 channels"
        if np.isclose(float(got), everything):
            hint = "you average over all pixels; leave out those on which nothing landed"
        compare("warp error", got, want, hint, rtol=1e-4)
    passed("warp_error")


@checker
def check_mawe(fn: Callable) -> None:
    """``fn(errors, lengths, floor)``: the code's MAWE from each pair's warp error and mean flow length.

    Mean over pairs of error / (9.5 length); pairs with a length below ``floor`` are left out; nan if none is left.
    """
    from st2v_lib.metrics.mawe import mawe_of

    rng = np.random.default_rng(2)
    cases = [(rng.random(n) * 100, rng.random(n) * 2, 0.1) for n in (1, 7, 40)]
    cases += [(np.array([50.0, 0.0]), np.array([0.0, 1.0]), 0.1), (np.array([1.0, 2.0]), np.array([0.01, 0.02]), 0.1)]
    for errors, lengths, floor in cases:
        want = mawe_of(list(zip(errors, lengths, lengths)), "code", {}, motion_floor=floor).value
        with np.errstate(divide="ignore", invalid="ignore"):
            got = float(call(fn, errors, lengths, floor))
            whole = errors.sum() / lengths.sum() / 9.5
            raw = float(np.mean(errors / (9.5 * lengths)))
        hint = "divide pair by pair, then take the mean"
        if np.isclose(got, whole):
            hint = "this is the ratio of the two means; the script takes the mean of the ratios"
        elif np.isclose(got, want * 9.5):
            hint = "the factor 9.5 in the denominator is missing"
        elif np.isclose(got, raw, equal_nan=True) or math.isinf(got):
            hint = "pairs that move less than the floor must be left out before you divide"
        elif math.isnan(want):
            hint = "when every pair is nearly static there is no answer: return nan, not 0"
        compare("MAWE", got, want, hint)
    passed("mawe")
