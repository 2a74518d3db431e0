"""Exercise checkers of ``05_full_generation``: counting frames, covering a video with chunks, the hand-over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from st2v_lib.notebook.checks import call, compare, passed


def check_bookkeeping(fn: Callable) -> None:
    """``fn(asked)``: chunks after the first, frames made, and frames the released code returns, for 16 or more."""
    for asked in (16, 17, 23, 24, 25, 80, 83, 240, 600, 1200):
        more = -(-(asked - 16) // 8)
        want = (more, 16 + 8 * more, asked // 8 * 8)
        got = call(fn, asked)
        hint = f"asked for {asked}: the first chunk gives 16, each later one 8"
        if np.shape(got) == (3,) and got != want:
            if got[0] == more - 1 or got[0] == (asked - 16) // 8 != more:
                hint = f"asked for {asked}: a started chunk counts as a whole one, so round up"
            elif got[0] == more + 1:
                hint = f"asked for {asked}: the first chunk is not among those after the first"
            elif got[1] != want[1]:
                hint = f"asked for {asked}: frames made are those before the surplus is cut off"
            elif got[2] != want[2]:
                hint = f"asked for {asked}: the released code rounds down to a multiple of 8"
        compare("bookkeeping", got, want, hint)
    passed("bookkeeping")


def check_starts(fn: Callable) -> None:
    """``fn(num_frames, chunk, overlap)``: first frames of the chunks that reach every frame of the video."""
    from st2v_lib.blending import chunk_starts

    for num_frames, chunk, overlap in ((24, 24, 8), (40, 24, 8), (80, 24, 8), (16, 24, 8), (25, 24, 8), (31, 10, 3)):
        want = chunk_starts(num_frames, chunk, overlap)
        got = list(call(fn, num_frames, chunk, overlap))
        case = f"{num_frames} frames, chunks of {chunk}, overlap {overlap}"
        hint = f"{case}: regular starts while they lie before the last possible one, then the last possible one"
        if got and max(got) + chunk > max(num_frames, chunk):
            hint = f"{case}: the last chunk looks beyond the end; move it back to num_frames - chunk"
        elif got and max(got) + chunk < num_frames:
            hint = f"{case}: frames from {max(got) + chunk} on are never enhanced, as in the released sampler"
        elif len(got) != len(set(got)):
            hint = f"{case}: a chunk is there twice; the length fits without an extra one"
        compare("starts", got, want, hint)
    passed("starts")


def check_hand_over(fn: Callable) -> None:
    """``fn(chunk, carried)``: the frames that join the video, and the frames that condition the next chunk."""
    generator = torch.Generator().manual_seed(0)
    for frames, carried in ((16, 8), (12, 4), (9, 6)):
        chunk = torch.rand(1, frames, 3, 4, 4, generator=generator) * 2 - 1
        new, cond = call(fn, chunk, carried)
        hint = f"{frames} frames, {carried} carried: the first {carried} repeat what the video has, the rest is new"
        compare("new frames", new, chunk[:, carried:], hint)
        hint = f"{frames} frames, {carried} carried: CAM always sees the last {carried} frames, however many are new"
        compare("condition", cond, chunk[:, -carried:], hint)
    passed("hand_over")
