"""Checkers of the exercises in notebook 11 (the field). The pattern is explained in ``checks``."""

from __future__ import annotations

from collections.abc import Callable
from math import floor, log2

from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
def check_keep(fn: Callable) -> None:
    """``fn(t, window, sink)``: the frames that frame ``t`` reads: the first ``sink`` and the last ``window``."""
    for t, window, sink in ((100, 8, 1), (100, 8, 3), (5, 8, 1), (10, 8, 4), (1, 8, 2), (20, 4, 0)):
        got = list(call(fn, t, window, sink))
        want = [f for f in range(t) if f < sink or f >= t - window]
        hint = f"frame {t}, window {window}, sink {sink}: the first frames and those just before t, in order"
        if t in got:
            hint = f"frame {t} is being made: it cannot be read yet"
        elif len(set(got)) < len(got):
            hint = f"frame {t}: a frame that is both a sink and in the window counts once"
        elif any(f < 0 for f in got):
            hint = f"frame {t} has only {t} frames before it; numbers cannot be negative"
        elif set(got) == set(want):
            hint = "the right frames, but not in order"
        compare("frames kept", got, want, hint)
    passed("keep")


@checker
def check_total(fn: Callable) -> None:
    """``fn(frames, tokens, ratio)``: sum of ``tokens / ratio ** floor(log2(age))`` over the ages 1 to ``frames``."""
    for frames, tokens, ratio in ((1, 64, 4.0), (2, 64, 4.0), (15, 64, 4.0), (240, 100, 3.0), (1000, 16, 2.0)):
        got = call(fn, frames, tokens, ratio)
        want = sum(tokens / ratio ** floor(log2(age)) for age in range(1, frames + 1))
        hint = "age 1, the newest, gets all its tokens; ages 2 and 3 one share of them, 4 to 7 the next smaller one"
        late = sum(tokens / ratio ** floor(log2(age)) for age in range(2, frames + 2))
        if abs(float(got) - late) < 1e-6:
            hint = "your ages begin at 2; the frame just before has age 1"
        elif abs(float(got) - sum(tokens / ratio ** log2(age) for age in range(1, frames + 1))) < 1e-6 and frames > 2:
            hint = "round the logarithm down: frames of age 4 to 7 are packed alike"
        compare("total", float(got), want, hint)
    passed("total")
