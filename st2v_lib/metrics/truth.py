"""Scores against the truth of the sprite world, as results beside the other metrics (``world.scores`` does the work).

Only for videos whose prompt is of that world. Each score relies on the reader, a net of its own that recovers sprites
from pixels; what it gets wrong on clean renderings is printed beside. None of this is in the paper: no real video comes
with its truth.

* ``world_colour``, ``world_shape``, ``world_motion``, ``world_background``, ``world_background_colour``: share of
  frames (of windows, for motion) that agree with the prompt.
* ``identity_pattern``, ``identity_shade``, ``identity_size``: how far the sprites after frame 16 are from those of the
  first 16 frames; share of frames, and shares of the attribute's range. Each stands between the reader's ``floor``,
  its error on clean renderings, and ``chance``, the error against a sprite drawn at random.
* ``seam_residual``: bend of the path at chunk seams less that elsewhere, px of the 64-pixel frame.
* ``object_permanence``: share of frames with the prompted number of sprites, visible or hidden as they may be.
* ``motion_kept``: speed at the end over speed at the start.

What a chunk repeats of the one before is in ``overlap.py``. Blind spots: see ``world.scores``; with no sprite left,
identity and speed are not defined, so read permanence first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from st2v_lib.errors import InputError
from st2v_lib.metrics.base import MetricResult, mean
from st2v_lib.video_io import as_frames, from_uint8
from st2v_lib.world.captions import PromptTruth, parse_prompt
from st2v_lib.world.scene import PATTERNS

if TYPE_CHECKING:
    from st2v_lib.world.reader import Reading

ANCHOR = 16  # frames of the first chunk, whose sprites are the ones to keep
STRIDE = 8  # new frames of every later chunk
SIDE = 64  # pixels the reader sees
BATCH = 64  # frames read at once
IDENTITY = {
    "pattern": "share of frames with another pattern than frames 0-15",
    "shade": "share of the range of shade away from frames 0-15",
    "size": "share of the range of size away from frames 0-15",
}


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
    """Reads the frames of one video as they come and scores them at the end; keeps no frame for long.

    Args:
        prompt: what the video was made from; ``world_truth`` of it must not be None.
        reader: of ``world.reader.load_reader``.
        metadata: of the file, for the seams.
        error: the reader's error; by default the recorded one, ``world.scores.reader_error()``.

    Raises:
        InputError: the prompt is not of the sprite world, or a frame is not square.
    """

    def __init__(self, prompt: str, reader, metadata: dict[str, Any] | None = None, error: dict | None = None):
        truth = world_truth(prompt)
        if truth is None:
            raise InputError(
                f"truth-based scores need a prompt of the sprite world with 1 or 2 sprites, got {prompt!r}"
            )
        self.prompt, self.reader, self.metadata, self.num_sprites = prompt, reader, metadata, len(truth.sprites)
        self.error = _recorded_error() if error is None else error
        self.frames: list[np.ndarray] = []  # at most BATCH, not read yet
        self.parts: list[tuple] = []

    def add(self, frame: np.ndarray) -> None:
        """Takes the next frame, ``uint8 h w c``."""
        if frame.shape[0] != frame.shape[1]:
            raise InputError(f"truth-based scores need square frames, got {frame.shape[1]}x{frame.shape[0]}")
        if frame.shape[0] != SIDE:
            x = rearrange(torch.as_tensor(frame), "h w c -> 1 c h w").float()
            x = F.interpolate(x, (SIDE, SIDE), mode="area").round().to(torch.uint8)
            frame = rearrange(x, "1 c h w -> h w c").contiguous().numpy()
        self.frames.append(frame)
        if len(self.frames) == BATCH:
            self._read()

    def _read(self) -> None:
        from st2v_lib.world.reader import detect

        device = next(self.reader.parameters()).device
        sprites, ground = detect(self.reader, from_uint8(np.stack(self.frames)).to(device))
        self.parts.append(({k: v.cpu() for k, v in sprites.items()}, {k: v.cpu() for k, v in ground.items()}))
        self.frames.clear()

    def reading(self) -> Reading:
        """What the reader saw in the frames so far, with as many sprites as the prompt asks for."""
        from st2v_lib.world.reader import follow

        if self.frames:
            self._read()
        return follow(self.parts, self.num_sprites)

    def results(self) -> dict[str, MetricResult]:
        """The scores by name; NaN where there is nothing to measure."""
        from st2v_lib.world import scores

        reading = self.reading()
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
            floor, chance = self._floor(), world_chance(anchor)
            for part, text in IDENTITY.items():
                between = {} if floor is None else {"floor": floor[part], "chance": chance[part]}
                put(f"identity_{part}", error[part], f"{text}, lower is better", frames=error["frames"], **between)
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
        try:
            return float(self.error["noise"]["second_difference"])
        except (TypeError, KeyError):
            return None

    def _floor(self) -> dict[str, float] | None:
        """What the identity scores would be on a clean rendering, by the reader's recorded error."""
        try:
            return identity_floor(self.error, self.num_sprites)
        except (TypeError, KeyError):
            return None


def _recorded_error() -> dict | None:
    from st2v_lib.world.scores import reader_error

    try:
        return reader_error()
    except (OSError, ValueError):
        return None


def identity_floor(error: dict, num_sprites: int = 1) -> dict[str, float]:
    """The reader's own identity error on clean renderings: its wrong patterns, its mean errors of shade and size.

    Args:
        error: of ``world.scores.reader_error``.
        num_sprites: 1 or 2; scenes of one and of two sprites are kept apart.

    Raises:
        KeyError: the record has no such entry.
    """
    clean = error["results"]["one sprite" if num_sprites == 1 else "two sprites"]["clean"]
    return {"pattern": 1 - clean["pattern"], "shade": clean["shade"], "size": clean["size"]}


def world_chance(anchor) -> dict[str, float]:
    """Expected identity error of a sprite drawn at random from the world, against an anchor; needs no second video.

    A random pattern is another one in three of four cases; a value drawn evenly from [0, 1] is on average
    ``(a^2 + (1 - a)^2) / 2`` away from ``a``. Sizes of two-sprite and of hiding scenes use a part of the range only:
    for them this is somewhat too high.

    Args:
        anchor: of ``world.scores.identity``; the mean over its sprites.
    """
    out = {"pattern": 1 - 1 / len(PATTERNS)}
    for part in ("shade", "size"):
        a = getattr(anchor, part).clamp(0, 1)
        a = a[~a.isnan()]
        out[part] = float(((a.square() + (1 - a).square()) / 2).mean()) if a.numel() else math.nan
    return out


def identity_scale(
    readings: Sequence[Reading], error: dict | None = None, num_sprites: int = 1
) -> dict[str, MetricResult]:
    """Identity error of several videos between two marks: the reader's floor, and chance by shuffled anchors.

    Chance is the error of each video's later frames against the anchors of all *other* videos.

    Args:
        readings: of ``world.reader.read_video``, longer than 16 frames, two or more.
        error: the reader's error; by default the recorded one.
        num_sprites: of each video.

    Returns:
        ``identity_pattern``, ``identity_shade``, ``identity_size``: the mean over videos, ``per_video``, and in the
        protocol ``floor``, ``chance`` and ``position``: 0 at the floor, 1 at chance.

    Raises:
        ValueError: fewer than two readings, or one without a frame after its anchor.
    """
    from st2v_lib.world import scores

    if len(readings) < 2 or min(map(len, readings)) <= ANCHOR:
        raise ValueError(
            f"expected two or more readings of more than {ANCHOR} frames, got lengths {[len(r) for r in readings]}"
        )
    anchors = [scores.identity(reading[:ANCHOR]) for reading in readings]
    later = [reading[ANCHOR:] for reading in readings]
    own = [scores.identity_error(frames, anchor) for frames, anchor in zip(later, anchors)]
    others = [
        scores.identity_error(frames, anchor)
        for i, frames in enumerate(later) for j, anchor in enumerate(anchors) if i != j
    ]  # fmt: skip
    floor = identity_floor(error or scores.reader_error(), num_sprites)
    out = {}
    for part, text in IDENTITY.items():
        values, chance = [e[part] for e in own], mean([e[part] for e in others if not math.isnan(e[part])])
        value = mean([v for v in values if not math.isnan(v)])
        protocol = {
            "units": f"{text}, lower is better", "reader": "tiny", "videos": len(readings), "floor": floor[part],
            "chance": chance, "position": (value - floor[part]) / (chance - floor[part]) if chance else math.nan,
        }  # fmt: skip
        out[f"identity_{part}"] = MetricResult(f"identity_{part}", value, per_video=tuple(values), protocol=protocol)
    return out


def truth_scores(
    video, prompt: str, reader, seams: Sequence[int] | None = None, error: dict | None = None
) -> dict[str, MetricResult]:
    """``TruthScores`` of a whole video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].

    Raises:
        InputError: a prompt of another world, frames that are not square, wrong layout or range.
    """
    scores = TruthScores(prompt, reader, None if seams is None else {"seams": list(seams)}, error)
    for frame in as_frames(video):
        scores.add(frame)
    return scores.results()
