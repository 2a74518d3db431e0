"""Drift: how far the look of a video has moved between its first and its last 15 %.

Long generation by continuation fades, saturates, blurs or freezes slowly; no pair of neighbouring frames shows it. For
each quantity two results: ``signed`` (last minus first: which way) and ``abs`` (its size). Over many videos the signed
values of a method that drifts at random cancel, the absolute ones do not. Not in the paper.

* colour: mean saturation (largest minus smallest channel) for ``signed``; distance of the mean RGB for ``abs``.
* contrast: standard deviation of luma. * sharpness: mean length of the luma gradient.
* motion: mean flow length, px per frame (only with flow).
* clip_distance: 1 - cosine of the CLIP embeddings of each frame and of the first, APM's anchor (only with a CLIP).

Units: grey levels 0..255, sharpness per pixel. But for the CLIP distance it cannot see drift of content (another
object of the same colours), and it takes wanted changes, such as a walk from shade into light, for drift. A change that
comes and goes between the two parts is not seen at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from st2v_lib.metrics.base import MetricResult, mean, undefined
from st2v_lib.metrics.clip_score import clip_protocol, distance, embed_video
from st2v_lib.metrics.flicker import LUMA
from st2v_lib.metrics.flow import flow_protocol, frame_pairs
from st2v_lib.metrics.motion import pair_motion
from st2v_lib.video_io import as_frames

SHARE = 0.15
UNITS = {
    "colour": "grey levels, 0..255",
    "contrast": "grey levels, 0..255",
    "sharpness": "grey levels per px",
    "motion": "px per frame",
    "clip_distance": "1 - cosine to the first frame",
}


def frame_look(frame: np.ndarray) -> dict[str, float]:
    """Mean red, green, blue and saturation, contrast and sharpness of ``uint8 h w c``."""
    red, green, blue = (np.ascontiguousarray(frame[..., c]) for c in range(3))
    saturation = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    luma = sum(np.float32(weight) * channel for weight, channel in zip(LUMA, (red, green, blue), strict=True))
    dx, dy = np.diff(luma, axis=1)[:-1], np.diff(luma, axis=0)[:, :-1]
    return {
        "red": float(red.mean()),
        "green": float(green.mean()),
        "blue": float(blue.mean()),
        "colour": float(saturation.mean()),
        "contrast": float(luma.std(dtype=np.float64)),
        "sharpness": float(np.sqrt(dx * dx + dy * dy).mean(dtype=np.float64)) if dx.size else 0.0,
    }


def drift(
    video,
    flow: str | None = "dis",
    flows=None,
    size: tuple[int, int] | None = None,
    share: float = SHARE,
    clip: torch.nn.Module | None = None,
    preprocess: Callable | None = None,
) -> dict[str, MetricResult]:
    """Change of colour, contrast, sharpness, motion and CLIP distance between the first and last part of a video.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        flow: estimator for the motion, None to leave motion out; ``flows``: given flow instead; ``size``: (h, w) the
            flow is measured at.
        share: size of the two parts, 0 < share <= 0.5; each has at least one frame.
        clip: a ``CLIPModel`` for the distance to the first frame, None to leave it out; ``preprocess``: see
            ``clip_score.clip_score``.

    Returns:
        Results named ``drift_<quantity>_signed`` and ``drift_<quantity>_abs``.

    Raises:
        ValueError: fewer than two frames, a share outside its range, wrong layout or range.
    """
    frames = as_frames(video)
    if len(frames) < 2:
        raise ValueError(f"drift needs at least 2 frames, got {len(frames)}")
    motions, distances, protocol = None, None, {}
    if flow is not None or flows is not None:
        motions = [pair_motion(pair) for pair in frame_pairs(frames, flow, flows, size)]
        protocol = {"motion": flow_protocol(flow, flows, size)}
    if clip is not None:
        vectors = embed_video(frames, clip, preprocess)
        distances = [distance(vector, vectors[0]) for vector in vectors]
        protocol["clip_distance"] = clip_protocol(clip, preprocess)
    return drift_of([frame_look(frame) for frame in frames], motions, distances, protocol, share)


def drift_of(
    looks: list[dict[str, float]],
    motions: list[float] | None,
    distances: list[float] | None,
    settings: dict[str, dict],
    share: float = SHARE,
) -> dict[str, MetricResult]:
    """The results from ``frame_look`` and the CLIP distance of each frame and the motion of each pair.

    Args:
        motions, distances: None leaves the quantity out.
        settings: protocol entries by quantity.
        share: see ``drift``.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"expected 0 < share <= 0.5, got {share}")
    results = {}
    given = {q: [look[q] for look in looks] for q in ("colour", "contrast", "sharpness")}
    given |= {"motion": motions, "clip_distance": distances}
    for quantity, series in given.items():
        if series is None:
            continue
        protocol = {"share": share, "units": UNITS[quantity], **settings.get(quantity, {})}
        if len(series) < 2:
            pair = (undefined("", "too few frames", protocol), undefined("", "too few frames", protocol))
        else:
            signed = _change(series, share)
            size = abs(signed)
            if quantity == "colour":
                size = math.hypot(*(_change([look[c] for look in looks], share) for c in ("red", "green", "blue")))
            values = {"per_pair" if quantity == "motion" else "per_frame": tuple(series), "protocol": protocol}
            pair = (MetricResult("", signed, **values), MetricResult("", size, **values))
        for kind, result in zip(("signed", "abs"), pair, strict=True):
            name = f"drift_{quantity}_{kind}"
            results[name] = MetricResult(name, result.value, result.per_pair, result.per_frame, None, result.protocol)
    return results


def _change(series: list[float], share: float) -> float:
    n = max(1, round(share * len(series)))
    return mean(series[-n:]) - mean(series[:n])
