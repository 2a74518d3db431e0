"""Flow deviation: does the amount of motion jump over time (paper §9.3, used there for randomized blending)?

Standard deviation over time of the mean flow length of each pair. Units: pixels of the video per frame; 0 for steady
motion. The paper says "standard deviation of flow magnitudes, averaged" and leaves open whether pixels are averaged
before or after; here they are averaged first, so that motion within the picture may move about freely.

For blending, the protocol compares pairs that touch an overlap of two chunks with all others: the root mean square
distance of their motion from the mean of the video.

What it cannot see: a jerk in direction at equal speed, and a seam that changes appearance but not motion. Wanted
acceleration counts as roughness, and a video that stands still is perfectly smooth: read it beside ``motion``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from st2v_lib.metrics.base import MetricResult, touches, undefined
from st2v_lib.metrics.flow import flow_protocol, frame_pairs
from st2v_lib.metrics.motion import pair_motion
from st2v_lib.video_io import as_frames


def flow_smoothness(
    video,
    flow: str = "dis",
    flows=None,
    size: tuple[int, int] | None = None,
    overlaps: Sequence[tuple[int, int]] = (),
) -> MetricResult:
    """Standard deviation over pairs of the mean flow length; lower is smoother.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        flow: estimator; ``flows``: given flow instead; ``size``: (h, w) to measure at, None for the native size.
        overlaps: frames that two chunks share, as (first, one after the last). The protocol then has the deviation
            ``inside_overlaps`` and ``elsewhere``, and their ``difference``.

    Raises:
        ValueError: fewer than three frames, overlaps outside the video, wrong layout or range.
    """
    frames = as_frames(video)
    if len(frames) < 3:
        raise ValueError(f"flow smoothness needs at least 3 frames, got {len(frames)}")
    pairs = frame_pairs(frames, flow, flows, size)
    return flow_smoothness_of([pair_motion(pair) for pair in pairs], flow_protocol(flow, flows, size), overlaps)


def flow_smoothness_of(lengths: list[float], protocol: dict, overlaps: Sequence[tuple[int, int]] = ()) -> MetricResult:
    """The result from the mean flow length of each pair."""
    protocol = {**protocol, "formula": "population std over time of mean flow length", "units": "px per frame"}
    if len(lengths) < 2:
        return undefined("flow_deviation", "fewer than 3 frames", protocol)
    if overlaps:
        away = (np.array(lengths) - np.mean(lengths)) ** 2
        inside = np.array(touches(overlaps, len(lengths)))
        parts = [float(np.sqrt(away[mask].mean())) if mask.any() else float("nan") for mask in (inside, ~inside)]
        protocol |= {"overlaps": [list(o) for o in overlaps], "inside_overlaps": parts[0], "elsewhere": parts[1]}
        protocol["difference"] = parts[0] - parts[1]
    return MetricResult("flow_deviation", float(np.std(lengths)), per_pair=tuple(lengths), protocol=protocol)
