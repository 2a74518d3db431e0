"""Long-gap consistency: does a video still have the colours it had 40 frames ago? No network, no download.

Each frame is a histogram of 8x8x8 bins of RGB; two frames are as alike as their histograms overlap (intersection, from
0 to 1). Neighbours nearly always agree; what a memory of one chunk loses shows only across a gap longer than a chunk.
The protocol has the whole curve of mean similarity over the gap. Not in the paper, whose re-identification score asks
the same of faces, with a network.

What it cannot see: where things are and how they move (a shuffled video keeps its histograms), another shape or pattern
in the same colours. Things that come and go, as they may, lower it; a frozen video has the best value there is.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from st2v_lib.metrics.base import MetricResult, mean, undefined
from st2v_lib.video_io import as_frames

GAP = 40  # frames: five chunks of eight
GAPS = (1, 8, 16, GAP)
BINS = 8


def histogram(frame: np.ndarray) -> np.ndarray:
    """Share of the pixels of ``uint8 h w c`` in each of 512 boxes of RGB, float64."""
    import cv2

    counts = cv2.calcHist([np.ascontiguousarray(frame)], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    return counts.ravel().astype(np.float64) / (frame.shape[0] * frame.shape[1])


class GapCounter:
    """Takes frame after frame; holds no more histograms than the longest gap."""

    def __init__(self):
        self.past: deque[np.ndarray] = deque(maxlen=max(GAPS))
        self.similarity: dict[int, list[float]] = {gap: [] for gap in GAPS}

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, ``uint8 h w c``."""
        now = histogram(frame)
        for gap, values in self.similarity.items():
            if len(self.past) >= gap:
                values.append(float(np.minimum(now, self.past[-gap]).sum()))
        self.past.append(now)

    def result(self) -> MetricResult:
        """Mean similarity across ``GAP`` frames; ``per_frame`` has NaN for the frames that have none that far back."""
        curve = {str(gap): mean(values) for gap, values in self.similarity.items() if values}
        protocol = {"gap": GAP, "bins": f"{BINS}x{BINS}x{BINS} RGB", "curve": curve, "units": "share, 1 is the same"}
        values = self.similarity[GAP]
        if not values:
            return undefined("long_gap", f"not more than {GAP} frames", protocol)
        return MetricResult(
            "long_gap", mean(values), per_frame=(float("nan"),) * GAP + tuple(values), protocol=protocol
        )


def long_gap(video) -> MetricResult:
    """Mean histogram intersection of frames 40 apart; higher is more alike.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].

    Raises:
        ValueError: not more than 40 frames, wrong layout or range.
    """
    frames = as_frames(video)
    if len(frames) <= GAP:
        raise ValueError(f"long-gap consistency needs more than {GAP} frames, got {len(frames)}")
    counter = GapCounter()
    for frame in frames:
        counter.add(frame)
    return counter.result()
