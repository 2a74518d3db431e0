"""Scores against the truth of the sprite world, as results beside the other metrics (``world.scores`` does the work).

Only for videos whose prompt is of that world. Each score relies on the reader, a net of its own that recovers sprites
from pixels; what it gets wrong on clean renderings is printed beside. None of this is in the paper: no real video comes
with its truth.

* ``world_colour``, ``world_shape``, ``world_motion``, ``world_background``, ``world_background_colour``: share of
  frames (of windows, for motion) that agree with the prompt.
* ``identity_pattern``, ``identity_shade``, ``identity_size``: how far the sprites after frame 16 are from those of the
  first 16 frames; share of frames, and shares of the attribute's range.
* ``seam_residual``: bend of the path at chunk seams less that elsewhere, px of the 64-pixel frame.
* ``object_permanence``: share of frames with the prompted number of sprites, visible or hidden as they may be.
* ``motion_kept``: speed at the end over speed at the start.

Blind spots: see ``world.scores``; with no sprite left, identity and speed are not defined, so read permanence first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from st2v_lib.errors import InputError
from st2v_lib.metrics.base import MetricResult
from st2v_lib.world.captions import PromptTruth, parse_prompt

ANCHOR = 16  # frames of the first chunk, whose sprites are the ones to keep
STRIDE = 8  # new frames of every later chunk
SIDE = 64  # pixels the reader sees


def world_truth(prompt: str) -> PromptTruth | None:
    """What a prompt of the sprite world asks for; None for any other (no sprite, or more than two)."""
    truth = parse_prompt(prompt)
    return truth if len(truth.sprites) in (1, 2) else None


def seams_of(frames: int, metadata: dict[str, Any] | None = None) -> list[int]:
    """First frame of each chunk but the first.

    Args:
        frames: length of the video.
        metadata: of the file; ``seams`` (a list), or ``chunk_frames`` and ``stride``, else 16 and 8.
    """
    metadata = metadata or {}
    given = metadata.get("seams")
    if given is None:
        given = range(int(metadata.get("chunk_frames", ANCHOR)), frames, int(metadata.get("stride", STRIDE)))
    return [int(seam) for seam in given if 0 < int(seam) < frames]


class TruthScores:
    """Collects the frames of one video, small, and scores them at the end.

    Args:
        prompt: what the video was made from; ``world_truth`` of it must not be None.
        reader: of ``world.reader.load_reader``.
        metadata: of the file, for the seams.
        error: the reader's error; by default the recorded one, ``world.scores.reader_error()``.

    Raises:
        InputError: the prompt is not of the sprite world, or a frame is not square.
    """

    def __init__(self, prompt: str, reader, metadata: dict[str, Any] | None = None, error: dict | None = None):
        if world_truth(prompt) is None:
            raise InputError(
                f"truth-based scores need a prompt of the sprite world with 1 or 2 sprites, got {prompt!r}"
            )
        self.prompt, self.reader, self.metadata, self.error = prompt, reader, metadata, error
        self.frames: list[torch.Tensor] = []

    def add(self, frame: np.ndarray) -> None:
        """Takes the next frame, ``uint8 h w c``; it is kept at 64x64."""
        if frame.shape[0] != frame.shape[1]:
            raise InputError(f"truth-based scores need square frames, got {frame.shape[1]}x{frame.shape[0]}")
        x = rearrange(torch.as_tensor(frame), "h w c -> 1 c h w")
        if frame.shape[0] != SIDE:
            x = F.interpolate(x.float(), (SIDE, SIDE), mode="area").round().to(torch.uint8)
        self.frames.append(rearrange(x, "1 c h w -> h w c").clone())

    def results(self) -> dict[str, MetricResult]:
        """The scores by name; NaN where there is nothing to measure."""
        from st2v_lib.world import scores
        from st2v_lib.world.reader import read_video

        reading = read_video(torch.stack(self.frames), self.reader, len(world_truth(self.prompt).sprites))
        out: dict[str, MetricResult] = {}

        def put(name: str, value: float, units: str, **protocol) -> None:
            if math.isnan(value):
                protocol["undefined"] = "nothing to measure"
            out[name] = MetricResult(name, float(value), protocol={"units": units, "reader": "tiny", **protocol})

        for name, value in scores.caption_accuracy(reading, self.prompt, self.reader).items():
            if not math.isnan(value):  # nan: the prompt does not say
                put(f"world_{name}", value, "share that agrees with the prompt, higher is better")
        anchor, later = scores.identity(reading[:ANCHOR]), reading[ANCHOR:]
        if len(later):
            error = scores.identity_error(later, anchor)
            units = {"pattern": "share of frames with another pattern than frames 0-15"}
            for part in ("pattern", "shade", "size"):
                text = units.get(part, f"share of the range of {part} away from frames 0-15")
                put(f"identity_{part}", error[part], f"{text}, lower is better", frames=error["frames"])
        seams = seams_of(len(reading), self.metadata)
        if seams:
            residual = scores.seam_residual(reading.positions, seams)
            noise = self._noise()
            put(
                "seam_residual", residual.value, "px at 64, lower is smoother",
                seams=seams, at_seams=residual.seams, inside=residual.inside, per_seam=list(residual.per_seam),
                **({} if noise is None else {"reader_error": f"{noise:.2f} px"}),
            )  # fmt: skip
        kept = scores.object_permanence(reading, self.prompt)
        put("object_permanence", kept["kept"], "share of frames, higher is better", longest_loss=kept["longest_loss"])
        moved = scores.motion_kept(reading.positions)
        put("motion_kept", moved["kept"], "speed at the end / at the start, 1 is best", **moved)
        return out

    def _noise(self) -> float | None:
        """The bend in px that the reader sees in a smooth path; None where it was not recorded."""
        from st2v_lib.world.scores import reader_error

        try:
            return float((self.error or reader_error())["noise"]["second_difference"])
        except (OSError, ValueError, KeyError):
            return None


def truth_scores(
    video, prompt: str, reader, seams: Sequence[int] | None = None, error: dict | None = None
) -> dict[str, MetricResult]:
    """``TruthScores`` of a whole video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].

    Raises:
        InputError: a prompt of another world, frames that are not square, wrong layout or range.
    """
    from st2v_lib.video_io import as_frames

    scores = TruthScores(prompt, reader, None if seams is None else {"seams": list(seams)}, error)
    for frame in as_frames(video):
        scores.add(frame)
    return scores.results()
