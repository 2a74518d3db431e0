"""Checkers of the exercises in notebook 02 (CAM). The pattern is explained in ``checks``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from st2v_lib.baselines.replacement import replacing
from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
def check_slots(fn: Callable) -> None:
    """``fn(k)``: frame numbers of the video that chunk ``k`` denoises (16 of them), and those it adds (8, for k >= 1).

    Chunk 0 is the first chunk of the base model; every later chunk repeats the last 8 frames made so far.
    """
    for k in (0, 1, 2, 3, 9, 148):
        answer = call(fn, k)
        assert isinstance(answer, (tuple, list)) and len(answer) == 2, "return two lists: (all slots, new frames)"
        slots, new = (list(part) for part in answer)
        want_slots = list(range(8 * k, 8 * k + 16))
        want_new = want_slots if k == 0 else want_slots[8:]
        hint = f"chunk {k}: every chunk has 16 slots, and each chunk after the first moves on by 8 frames only"
        if k and slots and slots[0] == 16 * k:
            hint = "you put the chunks end to end; here each one begins 8 frames before the old one ends"
        compare("slots", slots, want_slots, hint)
        hint = "chunk 0 is kept whole" if k == 0 else "slots 0-7 repeat what is already there; only slots 8-15 are new"
        compare("new frames", new, want_new, hint)
    passed("slots")


@checker
def check_add_injector(fn: Callable) -> None:
    """``fn(hidden, features)``: the additive rival of CAM's injector.

    ``hidden`` is a skip ``(b f) c h w``, ``features`` are ``b n c h w`` with n < f. The first n frames of every clip
    get the features of the frame with the same number added, the others stay as they are. Same shape as ``hidden``.
    """
    generator = torch.Generator().manual_seed(2)
    for b, f, n, c, h, w in ((1, 16, 8, 4, 3, 5), (2, 16, 8, 6, 4, 4), (3, 5, 2, 2, 1, 7)):
        hidden = torch.randn(b * f, c, h, w, generator=generator)
        features = torch.randn(b, n, c, h, w, generator=generator)
        want = hidden.view(b, f, c, h, w).clone()
        want[:, :n] += features
        got = call(fn, hidden, features)
        hint = "split (b f) into b and f first: frame 0 of the second clip is not frame f of the first"
        if torch.is_tensor(got) and got.shape == hidden.shape:
            flat = hidden.clone()
            flat[: b * n] += features.reshape(b * n, c, h, w)
            if b > 1 and torch.allclose(got, flat):
                hint = "you added to the first b*n rows; the rows are ordered clip after clip, each with f frames"
            elif torch.allclose(got[::f], want.flatten(0, 1)[::f]) and not torch.allclose(got, want.flatten(0, 1)):
                hint = "frame 0 is right, another frame is not: all first n frames get their own feature, no more"
        compare("additive injector", got, want.flatten(0, 1), hint)
    passed("add_injector")


@checker
def check_paste(fn: Callable) -> None:
    """``fn(latents, known, noise, alpha)``: the latents ``b c f h w`` with their first n frames replaced.

    These become the clean latents ``known`` (``b c n h w``), noised to ``alpha`` with the same frames of ``noise``:
    sqrt(alpha) * known + sqrt(1 - alpha) * noise. The other frames stay as they are.
    """
    generator = torch.Generator().manual_seed(3)
    for alpha, (b, c, f, n) in ((0.4, (1, 4, 16, 8)), (0.0, (2, 3, 16, 8)), (0.9, (2, 3, 6, 2))):
        latents, noise = (torch.randn(b, c, f, 3, 2, generator=generator) for _ in range(2))
        known = torch.randn(b, c, n, 3, 2, generator=generator)
        want = replacing(known, noise, torch.tensor([alpha]))(latents, torch.tensor(0))
        got, hint = call(fn, latents, known, noise, alpha), "frames come third: latents[:, :, :n]"
        if torch.is_tensor(got) and got.shape == latents.shape:
            if torch.allclose(got[:, :, :n], known):
                hint = "pasted clean: the network expects all frames at the noise level of the step"
            elif torch.allclose(got[:, :, :n], alpha * known + (1 - alpha) * noise[:, :, :n]):
                hint = "alpha is a share of the variance: take roots"
            elif torch.allclose(got[:, :, :n], want[:, :, :n]) and not torch.allclose(got, want):
                hint = "the first n frames are right; the others should be as they were"
        compare("pasted latents", got, want, hint)
    passed("paste")
