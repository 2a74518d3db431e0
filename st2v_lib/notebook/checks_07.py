"""Exercise checkers of ``07_tables_and_figures``: a paired difference, and the sign test of a vote."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from st2v_lib.notebook.ballot import sign_test
from st2v_lib.notebook.checks import checker, compare, passed


@checker
def check_difference(fn: Callable) -> None:
    """``fn(a, b)``: mean of ``a - b`` over the videos that both have a value for, and how many those are.

    ``a`` and ``b`` map a video's index to its value; nan where the value is not defined.
    """
    from st2v_lib.evaluation.statistics import paired_difference

    rng = np.random.default_rng(0)
    for n in (2, 9, 30):
        a = {i: float(v) for i, v in enumerate(rng.normal(3, 2, n))}
        b = {i: a[i] + float(v) for i, v in enumerate(rng.normal(1, 0.1, n))}
        for case in ("whole", "missing", "nan"):
            if case == "missing":
                b = {i: v for i, v in reversed(b.items()) if i != 0} | {n + 5: 100.0, n + 6: 90.0}
            elif case == "nan":
                a = a | {1: math.nan} if n > 2 else a
            want = paired_difference(a, b)
            got = _called(fn, dict(a), dict(b))
            compare("difference and number", list(got), [want.mean, want.n], _lesson(got, a, b, want.mean), rtol=1e-6)
    passed("difference")


def _called(fn: Callable, *arguments) -> tuple:
    try:
        got = fn(*arguments)
    except NotImplementedError:
        raise AssertionError("nothing here yet: replace `raise NotImplementedError` by your code") from None
    except KeyError as error:
        raise AssertionError(f"difference: video {error} is in one of the two only; leave it out") from None
    assert got is not None, "your function returns None: is there a `return` on every path?"
    assert isinstance(got, (tuple, list)) and len(got) == 2, "difference: return two numbers, the mean and how many"
    return tuple(got)


def _lesson(got: tuple, a: dict, b: dict, want: float) -> str:
    mean = float(got[0])
    if math.isnan(mean):
        return "a value that is nan takes its video out, in both arms"
    if math.isclose(mean, -want, rel_tol=1e-6):
        return "the sign is turned round: a less b"
    apart = np.nanmean(list(a.values())) - np.nanmean(list(b.values()))
    if math.isclose(mean, float(apart), rel_tol=1e-6):
        return "you take each arm's mean over its own videos; go over the videos that both have, then subtract"
    by_place = [x - y for x, y in zip(a.values(), b.values())]
    if math.isclose(mean, float(np.nanmean(by_place)), rel_tol=1e-6):
        return "you pair by position; pair by the video's index"
    return "for every index that both have, a[i] - b[i]; then the mean"


@checker
def check_sign_test(fn: Callable) -> None:
    """``fn(wins, losses)``: exact two-sided probability of a split at least as uneven, if both are equally likely."""
    for wins, losses in ((9, 4), (4, 9), (3, 3), (0, 0), (1, 0), (5, 0), (6, 0), (0, 6), (40, 21)):
        try:
            got = fn(wins, losses)
        except NotImplementedError:
            raise AssertionError("nothing here yet: replace `raise NotImplementedError` by your code") from None
        assert got is not None, "your function returns None: is there a `return` on every path?"
        want, n = sign_test(wins, losses), wins + losses
        hint = "add comb(n, k) for k from 0 to the smaller of the two, times 2, over 2**n; at most 1"
        if math.isclose(float(got), want / 2) and want < 1:
            hint = "this is one-sided; you did not know beforehand who would win, so double it"
        elif float(got) > 1:
            hint = "a probability is at most 1: at an even split the two tails overlap"
        elif n and math.isclose(float(got), math.comb(n, wins) / 2**n):
            hint = "this is the probability of exactly this split; add those that are more uneven"
        compare(f"{wins} wins, {losses} losses", float(got), want, hint, rtol=1e-6)
    passed("sign_test")
