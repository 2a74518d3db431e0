"""The checkers of notebooks 09 and 11 accept the right answer and name the likely mistake in a wrong one."""

from math import floor, log2

import pytest

from st2v_lib.notebook.checks_09 import check_roles, check_weighted_loss
from st2v_lib.notebook.checks_11 import check_keep, check_total
from st2v_lib.training.diffusion import weighted_mse


def roles(start, anchor=(0, 16), condition=(16, 24), shift=0):
    return tuple(list(range(start + shift + a, start + shift + b)) for a, b in (anchor, condition, (16, 32), (24, 32)))


def undivided(prediction, target, mask, weight):
    return ((1 + (weight - 1) * mask).unsqueeze(1) * (prediction - target).square()).mean()


def total(frames, tokens, ratio, first=1, rounding=floor):
    return sum(tokens / ratio ** rounding(log2(age)) for age in range(first, frames + first))


@pytest.mark.parametrize(
    "check, right",
    [
        (check_weighted_loss, weighted_mse),
        (check_roles, roles),
        (check_keep, lambda t, w, s: sorted({*range(min(s, t)), *range(max(0, t - w), t)})),
        (check_total, total),
    ],
)
def test_the_right_answer_passes(check, right, capsys):
    check(right)
    assert capsys.readouterr().out == f"PASS {check.__name__.removeprefix('check_')}\n"


@pytest.mark.parametrize(
    "check, wrong, lesson",
    [
        (check_weighted_loss, undivided, "divide by the mean weight"),
        (check_weighted_loss, lambda p, t, m, w: (p - t).square().mean(), "mask has no effect"),
        (check_weighted_loss, lambda p, t, m, w: weighted_mse(p, t, m, 9 * w), "mean of weight times"),
        (check_roles, lambda s: roles(s, shift=1), "counts from 1"),
        (check_roles, lambda s: roles(s, condition=(24, 32)), "answer would be in the question"),
        (check_roles, lambda s: roles(s, condition=(8, 16)), "beginning of the denoised frames"),
        (check_roles, lambda s: roles(s)[:3], "return four lists"),
        (check_keep, lambda t, w, s: [*range(s), *range(max(0, t - w), t)], "counts once"),
        (check_keep, lambda t, w, s: sorted({*range(min(s, t)), *range(t - w, t)}), "negative"),
        (check_keep, lambda t, w, s: sorted({*range(min(s, t)), *range(max(0, t - w), t + 1)}), "being made"),
        (check_total, lambda f, n, r: total(f, n, r, first=2), "ages begin at 2"),
        (check_total, lambda f, n, r: total(f, n, r, rounding=float), "round the logarithm down"),
    ],
)
def test_a_wrong_answer_is_told_why(check, wrong, lesson):
    with pytest.raises(AssertionError, match=lesson):
        check(wrong)
