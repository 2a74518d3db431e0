"""Drift, watched while a video is made: how each chunk looks beside the first, and when to warn.

Long generation by continuation fades, burns in or freezes slowly. For each chunk: colour (mean saturation), contrast,
sharpness, motion (px per frame, by optical flow) and the distance of its frames to the anchor in CLIP's image space.
``metrics.drift`` has the same quantities for a finished video. Not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from st2v_lib.metrics.drift import frame_look
from st2v_lib.metrics.flow import frame_pairs
from st2v_lib.metrics.motion import pair_motion

LOOKS = ("colour", "contrast", "sharpness")


@dataclass(frozen=True)
class DriftLimits:
    """When a chunk is out of bounds, and for how many chunks in a row before it is said.

    Attributes:
        still: motion below this is stagnation, in sides of the picture per frame (0.05 px of 64).
        burnt, faded: colour, contrast or sharpness above and below these multiples of the first chunk's.
        far: CLIP distance to the anchor (1 - cosine) above this.
        patience: chunks in a row.
    """

    still: float = 8e-4
    burnt: float = 2.0
    faded: float = 0.5
    far: float = 0.5
    patience: int = 3


def chunk_look(
    frames: np.ndarray, before: np.ndarray | None = None, embeds: Tensor | None = None, anchor: Tensor | None = None
) -> dict[str, float]:
    """How a chunk looks, as plain numbers.

    Args:
        frames: its new frames, ``uint8 f h w c``.
        before: the frame before them, ``uint8 h w c``: motion counts the step over the boundary, too.
        embeds: CLIP embeddings of the frames ``f e``; ``anchor``: of the anchor, ``e``.
    """
    looks = [frame_look(frame) for frame in frames]
    out = {name: float(np.mean([look[name] for look in looks])) for name in LOOKS}
    whole = frames if before is None else np.concatenate([before[None], frames])
    out["motion"] = float(np.mean([pair_motion(pair) for pair in frame_pairs(whole, "dis")])) if len(whole) > 1 else 0.0
    if embeds is not None:
        similarity = F.cosine_similarity(embeds.double(), anchor[None].double(), dim=-1)
        out["clip_distance"] = 1 - float(similarity.mean())
    return out


def drift_warnings(looks: Sequence[dict[str, float]], limits: DriftLimits | None = None, side: int = 64) -> list[str]:
    """What is wrong with the last chunks, in words; empty when all is well.

    Args:
        looks: ``chunk_look`` of all chunks so far, or of the first and at least the last ``patience`` of them.
        limits: thresholds.
        side: of the frames in pixels.
    """
    limits = limits or DriftLimits()
    first, recent = looks[0], looks[-limits.patience :]
    if len(looks) <= limits.patience:
        return []
    found = []
    if all(look["motion"] < limits.still * side for look in recent):
        found.append(f"stagnation: {recent[-1]['motion']:.2g} px of motion a frame, little for {len(recent)} chunks")
    for name in LOOKS:
        ratios = [look[name] / max(first[name], 1e-6) for look in recent]
        if min(ratios) > limits.burnt:
            found.append(f"burn-in: {name} is {ratios[-1]:.1f} times that of the first chunk")
        elif max(ratios) < limits.faded:
            found.append(f"fading: {name} is {ratios[-1]:.2f} times that of the first chunk")
    if all(look.get("clip_distance", 0.0) > limits.far for look in recent):
        found.append(f"the picture has left its anchor: CLIP distance {recent[-1]['clip_distance']:.2f}")
    return found
