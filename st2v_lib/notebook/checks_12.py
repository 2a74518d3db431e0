"""Exercise checkers of ``12_streaming``: who may run next, how far behind frames come, noise that knows its place."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
def check_ready(fn: Callable) -> None:
    """``fn(done, steps)``: from the steps each chunk has done, the chunks that may run their next step, in order.

    A chunk overlaps the one before and the one after; all chunks are there.
    """
    rng = random.Random(0)
    cases = [([0, 0, 0], 3), ([1, 0, 0], 3), ([2, 2, 2], 2), ([3, 2, 1, 0], 4), ([1], 4), ([2, 1, 1, 0, 0], 3)]
    for _ in range(30):
        done = [rng.randint(0, 4)]
        for _ in range(rng.randint(0, 8)):
            done.append(max(0, min(4, done[-1] + rng.choice((-1, 0, 1)))))
        cases.append((done, 4))
    for done, steps in cases:
        want = [
            k for k, i in enumerate(done)
            if i < steps and all(done[j] >= i for j in (k - 1, k + 1) if 0 <= j < len(done))
        ]  # fmt: skip
        got = list(call(fn, list(done), steps))
        hint = f"done {done}, {steps} steps: step i needs the step before, i - 1, of both neighbours"
        if any(done[k] >= steps for k in got if 0 <= k < len(done)):
            hint = f"done {done}, {steps} steps: a chunk that has done all steps does not run again"
        elif got == [k for k in want if k + 1 < len(done) and done[k + 1] > done[k]]:
            hint = f"done {done}: a neighbour that is level is far enough; it need not be ahead"
        compare("ready", got, want, hint)
    passed("ready")


@checker
def check_lag(fn: Callable) -> None:
    """``fn(steps, chunk, overlap)``: how many frames the chunk that leaves is behind the one that enters."""
    for steps, chunk, overlap in ((6, 24, 8), (30, 24, 8), (1, 24, 8), (4, 6, 2), (5, 10, 0)):
        got = float(call(fn, steps, chunk, overlap))
        hint = f"{steps} steps, chunks of {chunk}, overlap {overlap}: with each step one chunk further back"
        if got == steps * (chunk - overlap):
            hint = "the chunk that enters runs its first step at once: count the steps after the first"
        elif got == (steps - 1) * chunk:
            hint = "neighbouring chunks begin chunk - overlap frames apart"
        compare("lag", got, (steps - 1) * (chunk - overlap), hint)
    passed("lag")


@checker
def check_noise(fn: Callable) -> None:
    """``fn(seed, frames, step)``: noise ``len(frames) 16``; a frame's row depends on nothing but seed, frame, step."""
    for seed, step in ((0, 0), (7, 3)):
        many = torch.as_tensor(call(fn, seed, [3, 4, 5, 900], step))
        compare("shape", torch.tensor(many.shape), torch.tensor([4, 16]), "one row of 16 numbers for each frame")
        alone = torch.as_tensor(call(fn, seed, [900], step))
        hint = "frame 900 has another noise when it is asked for alone: give each frame a generator of its own"
        compare("alone", alone[0], many[3], hint)
        again = torch.as_tensor(call(fn, seed, [5, 4, 3], step))
        compare("order", again.flip(0), many[:3], "the order in which frames are asked for must not matter")
        for name, other in (
            ("seed", (seed + 1, [3], step)),
            ("frame", (seed, [4], step)),
            ("step", (seed, [3], step + 1)),
        ):
            differs = bool((torch.as_tensor(call(fn, *other))[0] != many[0]).any())
            compare(f"another {name}", differs, True, f"the noise does not depend on the {name}")
        swapped = torch.as_tensor(call(fn, step, [seed], 3))
        differs = bool((swapped[0] != torch.as_tensor(call(fn, seed, [3], step))[0]).any())
        compare("another place", differs, True, "do not add the numbers up: different places then share their noise")
    values = torch.as_tensor(call(fn, 1, list(range(400)), 2)).double()
    compare("mean and spread", [abs(values.mean()) < 0.05, abs(values.std() - 1) < 0.05], [True, True], "torch.randn")
    passed("noise")
