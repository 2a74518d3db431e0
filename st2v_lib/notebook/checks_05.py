"""Exercise checkers of ``05_full_generation``: counting frames, what length costs, the hand-over."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from st2v_lib.notebook.checks import call, checker, compare, passed


@checker
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


@checker
def check_bytes(fn: Callable) -> None:
    """``fn(num_frames, side)``: bytes of frames alive when the last chunk is done, in three programs.

    Frames are float32 and square. The first program keeps all frames that it returns, the second all chunks whole, the
    third holds the last chunk and 8 carried frames. Lengths fit: 16, 24, 32 ...
    """
    for num_frames, side in ((16, 64), (24, 64), (80, 64), (240, 32), (1200, 256)):
        chunks, frame = 1 + (num_frames - 16) // 8, 3 * side**2 * 4
        want = (num_frames * frame, 16 * chunks * frame, 24 * frame)
        got = call(fn, num_frames, side)
        case = f"{num_frames} frames of {side} px"
        hint = f"{case}: count the frames that each program holds, then 3 * side * side numbers of 4 bytes each"
        if np.shape(got) == (3,) and tuple(got) != want:
            if np.allclose(np.multiply(got, 4), want):
                hint = f"{case}: these are numbers, not bytes; a float32 has four"
            elif np.allclose(np.multiply(got, 3), want):
                hint = f"{case}: a pixel has three colours"
            elif got[0] == want[0] and got[1] == 16 * (chunks - 1) * frame:
                hint = f"{case}: the first chunk is kept, too"
            elif got[0] == want[0] and got[1] == want[0] != want[1]:
                hint = f"{case}: a whole chunk has 16 frames, also those 8 that repeat the chunk before"
            elif got[:2] == want[:2] and got[2] in (16 * frame, 8 * frame):
                hint = f"{case}: the stream holds two things, the chunk of 16 and the condition of 8"
            elif got[:2] == want[:2] and got[2] > want[2]:
                hint = f"{case}: a stream has handed its earlier frames out; it does not grow with the length"
        compare("bytes", got, want, hint)
    passed("bytes")


@checker
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
