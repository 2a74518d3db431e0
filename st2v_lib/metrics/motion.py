"""Motion amount: how far pixels travel from frame to frame, the mean length of the optical flow.

Units: pixels of the video per frame (flow that was measured at another size is scaled back). Paper: the denominator of
MAWE, §12, on its own. A video that stands still scores 0, and so does one whose motion the flow cannot see (flat
regions). It cannot tell wanted motion from flicker, morphing, camera shake or a cut, all of which raise it.
"""

from __future__ import annotations

import numpy as np

from st2v_lib.metrics.base import MetricResult, mean
from st2v_lib.metrics.flow import Pair, flow_protocol, frame_pairs, two_or_more
from st2v_lib.video_io import as_frames


def mean_length(flow: np.ndarray, scale: tuple[float, float] = (1.0, 1.0)) -> float:
    """Mean over pixels of the flow's length; ``scale`` multiplies dx and dy first."""
    dx, dy = flow[0].astype(np.float64) * scale[0], flow[1].astype(np.float64) * scale[1]
    return float(np.sqrt(dx * dx + dy * dy).mean())


def mean_square(flow: np.ndarray) -> float:
    """Mean over pixels of the flow's squared length."""
    x = flow.astype(np.float64).ravel()
    return float(x @ x) / flow[0].size


def pair_motion(pair: Pair) -> float:
    """Mean flow length of a pair, in pixels of the video."""
    return mean_length(pair.forward, pair.scale)


def motion(video, flow: str = "dis", flows=None, size: tuple[int, int] | None = None) -> MetricResult:
    """Mean over pairs of the mean flow length, in pixels per frame.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        flow: estimator; ``flows``: given flow instead; ``size``: (h, w) to measure at, None for the native size.

    Raises:
        ValueError: fewer than two frames, wrong layout or range.
    """
    frames = two_or_more(as_frames(video), "motion")
    return motion_of(
        [pair_motion(pair) for pair in frame_pairs(frames, flow, flows, size)], flow_protocol(flow, flows, size)
    )


def motion_of(lengths: list[float], protocol: dict) -> MetricResult:
    """The result from the mean flow length of each pair."""
    return MetricResult(
        "motion", mean(lengths), per_pair=tuple(lengths), protocol={**protocol, "units": "px per frame"}
    )
