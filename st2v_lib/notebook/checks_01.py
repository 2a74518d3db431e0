"""Exercise checkers of ``01_base_model``: one DDIM step, guidance with two weights, the second difference of a path."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
def check_ddim_step(fn: Callable) -> None:
    """``fn(x, v, abar, abar_next)``: the deterministic DDIM step of a v-prediction.

    ``x`` are noisy latents with signal share ``abar`` (the square of the signal's factor), ``v`` the prediction there,
    ``abar_next`` the share after the step, all floats or tensors of any shape.
    """
    generator = torch.Generator().manual_seed(0)
    for abar, after in ((0.9, 0.97), (0.3, 0.6), (0.0, 0.2), (0.5, 1.0)):
        x, v = torch.randn(2, 1, 3, 4, 5, 6, generator=generator)
        a, s = abar**0.5, (1 - abar) ** 0.5
        x0, noise = a * x - s * v, s * x + a * v
        want = after**0.5 * x0 + (1 - after) ** 0.5 * noise
        got = call(fn, x, v, abar, after)
        hint = f"at abar {abar:g}: clean part a·x - s·v, noise s·x + a·v, then mixed again with the new a and s"
        if torch.is_tensor(got) and got.shape == x.shape:
            if not torch.isfinite(got).all():
                hint = (
                    "you divide by the signal's factor, which is 0 at the first step; a v-prediction needs no division"
                )
            elif torch.allclose(got, after * x0 + (1 - after) * noise, atol=1e-5):
                hint = "abar is a share of the variance: the factors of signal and noise are square roots"
            elif torch.allclose(got, x0, atol=1e-5):
                hint = "this is the clean estimate; the step adds the noise back, at the next level"
            elif torch.allclose(got, a * x0 + s * noise, atol=1e-5):
                hint = "you are back at x: mix with abar_next, not with abar"
        compare("DDIM step", got, want, hint, rtol=1e-4, atol=1e-5)
    passed("ddim_step")


@checker
def check_guidance(fn: Callable) -> None:
    """``fn(null, text, full, text_weight, anchor_weight)``: guidance with a weight for each condition (eq. 12).

    ``null`` is the prediction without text and anchor, ``text`` with the text alone, ``full`` with both.
    """
    from st2v_lib.sampling import Contexts, guided

    generator = torch.Generator().manual_seed(1)
    for text_weight, anchor_weight in ((7.5, 7.5), (3.0, 1.0), (3.0, 0.0), (1.0, 5.0)):
        null, text, full = torch.randn(3, 2, 4, 3, 2, 2, generator=generator)
        tokens = torch.zeros(2, 1, 1)
        contexts = Contexts(tokens, tokens, tokens, tokens, text_weight, anchor_weight)
        parts = {2: [null, full], 3: [null, text, full]}

        def predict(latents, timestep, tokens, parts=parts):
            return torch.cat(parts[len(tokens) // len(latents)])

        want = guided(predict, torch.zeros_like(null), torch.tensor(0), contexts)
        got = call(fn, null, text, full, text_weight, anchor_weight)
        hint = "start at null, go text_weight times the way to text, then anchor_weight times the way from text to full"
        if torch.is_tensor(got) and got.shape == null.shape:
            if torch.allclose(got, null + text_weight * (text - null) + anchor_weight * (full - null), atol=1e-5):
                hint = "the anchor's direction starts at the prediction with text, not at null"
            elif torch.allclose(got, text_weight * (text - null) + anchor_weight * (full - text), atol=1e-5):
                hint = "the sum of directions has to start somewhere: add null"
        compare("guidance", got, want, hint, rtol=1e-4, atol=1e-5)
    passed("guidance")


@checker
def check_second_difference(fn: Callable) -> None:
    """``fn(path)``: how much a path bends at its inner frames, a tensor ``(f, 2)`` to ``(f - 2,)``.

    The length of ``p[t+1] - 2 p[t] + p[t-1]``: zero for steady motion, whatever its speed.
    """
    from st2v_lib.world.scores import PIXELS, second_difference

    rng = np.random.default_rng(0)
    for frames in (5, 16, 40):
        path = rng.random((frames, 2)).cumsum(0)
        want = second_difference(torch.tensor(path))[1:-1].numpy() / PIXELS
        got = call(fn, torch.tensor(path))
        hint = "p[t+1] - 2 p[t] + p[t-1] for the inner frames, then the length of that vector"
        if np.shape(got) == (frames - 1,):
            hint = "these are the steps from frame to frame; take the difference of neighbouring steps once more"
        elif np.shape(got) == (frames - 2, 2):
            hint = "these are vectors; the answer is their length, the root of x² + y²"
        elif np.shape(got) == (frames - 2,) and np.allclose(
            got, np.diff(np.linalg.norm(np.diff(path, axis=0), axis=1))
        ):
            hint = "you compare speeds; a turn at constant speed bends too, so take lengths last"
        compare("second difference", got, want, hint, rtol=1e-4, atol=1e-6)
    passed("second_difference")
