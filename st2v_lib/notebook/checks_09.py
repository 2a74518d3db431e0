"""Checkers of the exercises in notebook 09 (training). The pattern is explained in ``checks``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from st2v_lib.notebook.checks import call, checker, compare, passed
from st2v_lib.training.diffusion import weighted_mse


@checker
def check_weighted_loss(fn: Callable) -> None:
    """``fn(prediction, target, mask, weight)``: squared error, ``weight`` times as strong where ``mask`` is 1.

    ``prediction``, ``target``: ``b c f h w``; ``mask``: ``b f h w`` in [0, 1]. A constant error gives its square.
    """
    generator = torch.Generator().manual_seed(9)
    for b, c, f, h, w, weight in ((1, 3, 4, 5, 6, 5.0), (2, 8, 16, 4, 4, 3.0), (3, 4, 3, 2, 7, 1.0)):
        prediction, target = (torch.randn(b, c, f, h, w, generator=generator) for _ in range(2))
        mask = torch.rand(b, f, h, w, generator=generator)
        want = weighted_mse(prediction, target, mask, weight)
        got = call(fn, prediction, target, mask, weight)
        plain = (prediction - target).square()
        weights = (1 + (weight - 1) * mask).unsqueeze(1)
        hint = "mean of weight times squared error, divided by the mean weight"
        if torch.is_tensor(got) and got.shape == want.shape:
            if torch.allclose(got, (weights * plain).mean()):
                hint = "a constant error of 1 must give 1 with any mask: divide by the mean weight"
            elif torch.allclose(got, plain.mean()):
                hint = "this is the plain error: the mask has no effect"
            elif torch.allclose(got, (weight * mask.unsqueeze(1) * plain).mean() / (weight * mask).mean()):
                hint = "a cell without sprite still weighs 1, not 0"
        compare("weighted loss", got, want, hint, rtol=1e-4)
    passed("weighted_loss")


@checker
def check_roles(fn: Callable) -> None:
    """``fn(start)``: four lists of frame numbers: possible anchors, condition, denoised frames, new frames.

    Of a training segment of 32 frames that begins at frame ``start`` (paper §10: 1–16, 17–24, 17–32, counted from 1).
    """
    names = ("anchor", "condition", "denoised frames", "new frames")
    for start in (0, 5, 210):
        answer = call(fn, start)
        assert isinstance(answer, (tuple, list)) and len(answer) == 4, "return four lists: " + ", ".join(names)
        for name, part, (a, b) in zip(names, answer, ((0, 16), (16, 24), (16, 32), (24, 32))):
            part, hint = list(part), f"the {name} of a segment that begins at frame {start}"
            if part == list(range(start + a + 1, start + b + 1)):
                hint = "the paper counts from 1; frame numbers here count from 0"
            elif name == "condition" and part == list(range(start + 24, start + 32)):
                hint = "these are the frames to be made: the answer would be in the question"
            elif name == "condition" and part == list(range(start + 8, start + 16)):
                hint = "the condition is the beginning of the denoised frames, not what lies before them"
            compare(name, part, list(range(start + a, start + b)), hint)
    passed("roles")
