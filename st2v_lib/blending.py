"""Randomized blending of overlapping chunks (paper §4.3, Fig. 4; naive variants: §9.3).

At every denoising step and for every boundary between two chunks a cut is drawn inside their overlap: frames before
it take the left chunk's prediction, the rest the right chunk's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LAWS = ("code", "paper")  # the cut is uniform on {0..O-1} in the released code, on {0..O} in the paper
NAIVE = ("B", "B+S")  # chunks on their own; with "+S" the noise of shared frames is shared


def chunk_starts(num_frames: int, chunk_frames: int, overlap_frames: int) -> list[int]:
    """First frames of the chunks that cover a video of any length.

    Chunks start every ``chunk_frames - overlap_frames``; when the length does not fit, the last one starts at
    ``num_frames - chunk_frames`` and overlaps more. A video shorter than a chunk is one short chunk.

    Raises:
        ValueError: unless ``0 <= overlap_frames < chunk_frames`` and there is a frame.
    """
    if not 0 <= overlap_frames < chunk_frames or num_frames < 1:
        raise ValueError(
            f"expected 0 <= overlap < chunk and at least one frame, "
            f"got overlap {overlap_frames}, chunk {chunk_frames}, {num_frames} frames"
        )
    last = max(num_frames - chunk_frames, 0)
    return [*range(0, last, chunk_frames - overlap_frames), last]


def overlaps(starts: list[int], chunk_frames: int) -> list[int]:
    """Frames each chunk shares with the one before it; 0 for the first."""
    return [0] + [left + chunk_frames - right for left, right in zip(starts, starts[1:], strict=False)]


def draw_cuts(overlap_widths: list[int], law: str = "code", generator: torch.Generator | None = None) -> list[int]:
    """One cut for each chunk, in frames from its start; 0 where nothing overlaps.

    Raises:
        ValueError: for an unknown law.
    """
    if law not in LAWS:
        raise ValueError(f"unknown blend law {law!r}; choose one of {', '.join(LAWS)}")
    extra = int(law == "paper")
    return [int(torch.randint(o + extra, (), generator=generator)) if o else 0 for o in overlap_widths]


def stage_key(generator: torch.Generator | None = None) -> int:
    """The one number that all noise and cuts of an enhancement follow from: a draw from ``generator``."""
    return int(torch.randint(2**62, (), generator=generator))


def frame_noise(key: int, frames: Sequence[int], step: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise ``b c f h w``, each frame's a function of ``(key, frame, step)`` alone.

    So it is the same whichever frames are asked for together, in a stream or all at once.

    Args:
        key: see ``stage_key``.
        frames: indices of video frames.
        step: 0 for the noise that is added to the video, i + 1 for that of solver step i.
        shape: ``b, c, h, w`` of one frame.
        like: gives the device.
    """
    drawn = [torch.randn(tuple(shape), generator=_keyed(key, 0, frame, step)) for frame in frames]
    return torch.stack(drawn, dim=2).to(like.device)


def boundary_cut(key: int, boundary: int, step: int, overlap: int, law: str = "code") -> int:
    """The cut between chunks ``boundary - 1`` and ``boundary`` at a step, a function of its arguments alone."""
    return draw_cuts([overlap], law, _keyed(key, 1, boundary, step))[0]


def _keyed(*key: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def probability_of_left(frame: int, overlap: int, law: str = "code") -> float:
    """Chance that overlap frame ``frame``, counted from 1, comes from the left chunk: 1 - f/O, or 1 - f/(O+1)."""
    if not 1 <= frame <= overlap or law not in LAWS:
        raise ValueError(f"expected 1 <= frame <= {overlap} and a law of {', '.join(LAWS)}, got {frame} and {law!r}")
    return 1 - frame / (overlap + (law == "paper"))


def blend(chunks: list[Tensor], starts: list[int], cuts: list[int]) -> Tensor:
    """Joins chunk predictions ``b c f h w`` into one video: chunk k takes over from its own frame ``cuts[k]`` on."""
    video = chunks[0]
    for chunk, start, cut in zip(chunks[1:], starts[1:], cuts[1:], strict=True):
        if not start <= start + cut <= video.shape[2]:
            raise ValueError(f"expected a cut from 0 to the overlap's {video.shape[2] - start} frames, got {cut}")
        video = torch.cat([video[:, :, : start + cut], chunk[:, :, cut:]], dim=2)
    return video
