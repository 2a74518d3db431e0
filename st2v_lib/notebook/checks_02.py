"""Checkers of the exercises in notebook 02 (CAM). The pattern is explained in ``checks``."""

from __future__ import annotations

from collections.abc import Callable

import torch

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
