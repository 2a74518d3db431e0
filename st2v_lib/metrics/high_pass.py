"""High-pass correlation: does fine detail travel with the motion, or is it made anew from frame to frame?

The fine detail of a frame is the frame less its Gaussian blur. Detail of the second frame of a pair is fetched back
along the flow, and correlated (Pearson) with that of the first, over the pixels that both frames show. 1: the same
detail, moved; 0: unrelated. Not in the paper, which judges blending by flow deviation and by eye (its Fig. 4).

For a blended video the number to read is the *difference*: pairs that touch an overlap of two chunks, less all others.
0 means that the overlaps cannot be told from the rest; averaged chunks blur there, a hard switch breaks there.

What it cannot see: anything coarser than the blur, and detail that is wrong but moves consistently. Frames without
detail have no correlation: such pairs are left out and counted. Bilinear fetching costs a little at sub-pixel motion,
inside overlaps and elsewhere alike; errors of the flow lower it, most where the motion is fast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from st2v_lib.metrics.base import MetricResult, mean, touches
from st2v_lib.metrics.flow import Pair, flow_protocol, frame_pairs, two_or_more
from st2v_lib.metrics.warp import as_tensors, backward_warp, visible_in_both
from st2v_lib.video_io import as_frames

SIGMA = 1.5  # px of the blur, at the measured size
FLAT = 0.05  # grey levels: less fine detail than this is none


def high_pass(frame: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    """Fine detail of ``uint8 h w c``, float32 ``c h w``: the frame less its blur."""
    import cv2

    x = np.ascontiguousarray(frame, dtype=np.float32)
    return (x - cv2.GaussianBlur(x, (0, 0), sigma)).transpose(2, 0, 1)


def pair_correlation(pair: Pair, sigma: float = SIGMA) -> float:
    """Correlation of the detail of a pair along its flow; NaN where one of the frames has none."""
    first, second, forward = as_tensors(high_pass(pair.first, sigma), high_pass(pair.second, sigma), pair.forward)
    backward = None if pair.backward is None else as_tensors(pair.backward)[0]
    fetched, _ = backward_warp(second, forward)
    known = visible_in_both(forward, backward)[0]
    a, b = (x[0, :, known].double().flatten() for x in (first, fetched))
    if a.numel() < 2 or min(a.std(correction=0), b.std(correction=0)) < FLAT:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()))


def high_pass_correlation(
    video,
    flow: str = "dis",
    flows: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    overlaps: Sequence[tuple[int, int]] = (),
    backward_flows: np.ndarray | None = None,
) -> MetricResult:
    """Mean over pairs of the correlation of motion-aligned fine detail; higher is better.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        flow: estimator; ``flows``, ``backward_flows``: given flow instead; ``size``: (h, w) to measure at, None for the
            native size.
        overlaps: frames that two chunks share, as (first, one after the last). The protocol then has the means
            ``inside_overlaps`` and ``elsewhere`` and their ``difference``.

    Raises:
        ValueError: fewer than two frames, overlaps outside the video, wrong layout or range.
    """
    frames = two_or_more(as_frames(video), "high-pass correlation")
    pairs = frame_pairs(frames, flow, flows, size, backward=True, backward_flows=backward_flows)
    return high_pass_of([pair_correlation(pair) for pair in pairs], flow_protocol(flow, flows, size), overlaps)


def high_pass_of(
    correlations: list[float], protocol: dict, overlaps: Sequence[tuple[int, int]] = (), sigma: float = SIGMA
) -> MetricResult:
    """The result from ``pair_correlation`` of all pairs."""
    flat = [i for i, value in enumerate(correlations) if math.isnan(value)]
    protocol = {**protocol, "blur_sigma_px": sigma, "flat_pairs": flat, "units": "correlation, 1 is best"}
    if overlaps:
        inside = touches(overlaps, len(correlations))
        parts = [[c for c, i in zip(correlations, inside) if i is want and not math.isnan(c)] for want in (True, False)]
        protocol |= {"overlaps": [list(o) for o in overlaps], "inside_overlaps": mean(parts[0])}
        protocol |= {"elsewhere": mean(parts[1]), "difference": mean(parts[0]) - mean(parts[1])}
    value = mean([c for c in correlations if not math.isnan(c)])
    if math.isnan(value):
        protocol["undefined"] = "no pair of frames with fine detail"
    return MetricResult("high_pass_correlation", value, per_pair=tuple(correlations), protocol=protocol)
