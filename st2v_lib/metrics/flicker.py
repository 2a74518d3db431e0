"""Temporal flicker: does the brightness of the picture jitter from frame to frame?

A quarter of the mean absolute second difference over time of the mean luma. A video whose brightness alternates by +a
and -a scores a; a steady fade scores 0, and so does a constant video. Units: grey levels, 0..255. Not in the paper.

What it cannot see: flicker of small parts that leaves the mean alone, changes of colour at equal luma, and flicker
slower than a few frames. A cut adds |jump| / 2 once, divided by the number of frames.
"""

from __future__ import annotations

import numpy as np

from st2v_lib.metrics.base import MetricResult, mean, undefined
from st2v_lib.video_io import as_frames

LUMA = np.array([0.299, 0.587, 0.114])


def mean_luma(frame: np.ndarray) -> float:
    """Mean Rec. 601 luma of ``uint8 h w c``, in grey levels."""
    import cv2

    return float(np.array(cv2.mean(frame)[:3]) @ LUMA)


def flicker(video) -> MetricResult:
    """Mean over inner frames of |L(i-1) - 2 L(i) + L(i+1)| / 4; lower is better.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].

    Raises:
        ValueError: fewer than three frames, wrong layout or range.
    """
    frames = as_frames(video)
    if len(frames) < 3:
        raise ValueError(f"flicker needs at least 3 frames, got {len(frames)}")
    return flicker_of([mean_luma(frame) for frame in frames])


def flicker_of(lumas: list[float]) -> MetricResult:
    """The result from the mean luma of each frame; ``per_frame`` holds those lumas."""
    protocol = {"formula": "mean |second difference of mean luma| / 4", "units": "grey levels, 0..255"}
    if len(lumas) < 3:
        return undefined("flicker", "fewer than 3 frames", protocol)
    value = mean(np.abs(np.diff(lumas, n=2)).tolist()) / 4
    return MetricResult("flicker", value, per_frame=tuple(lumas), protocol=protocol)
