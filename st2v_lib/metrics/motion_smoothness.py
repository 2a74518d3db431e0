"""Motion smoothness: do things keep their velocity from one pair of frames to the next?

A pixel that moves by f(i) from frame i to i + 1 is followed to where it lands, and asked how it moves on from there.
The length of the change of its flow, averaged over the pixels that can be followed, is 0 for motion at constant speed
in a constant direction. Units: pixels of the video per frame, per frame. Not in the paper; VBench's metric of this name
asks a frame-interpolation network instead, which has to be downloaded.

Unlike flow deviation (``flow_smoothness.py``) it sees a jerk in direction at equal speed, and acceleration of one part
of the picture against another. What it cannot see: a video that stands still is perfectly smooth, so read it beside
``motion``; wanted turns and bounces count; noise of the estimator in flat regions counts twice.
"""

from __future__ import annotations

import numpy as np

from st2v_lib.metrics.base import MetricResult, mean, undefined
from st2v_lib.metrics.flow import Pair, flow_protocol, frame_pairs
from st2v_lib.metrics.warp import as_tensors, backward_warp, visible_in_both
from st2v_lib.video_io import as_frames


def pair_turn(before: Pair, after: Pair) -> float:
    """Mean length of the change of flow from one pair to the next, in pixels of the video; NaN if nothing stays seen.

    Args:
        before, after: consecutive pairs, the second frame of one being the first of the other.
    """
    first, second = as_tensors(before.forward, after.forward)
    backward = None if before.backward is None else as_tensors(before.backward)[0]
    carried, _ = backward_warp(second, first)
    change = (carried - first) * first.new_tensor(before.scale).view(1, 2, 1, 1)
    lengths = change.square().sum(1).sqrt()[visible_in_both(first, backward)]
    return float(lengths.double().mean())  # NaN for no pixel


def motion_smoothness(
    video, flow: str = "dis", flows: np.ndarray | None = None, size: tuple[int, int] | None = None
) -> MetricResult:
    """Mean over inner frames of ``pair_turn``; lower is smoother.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        flow: estimator; ``flows``: given flow instead; ``size``: (h, w) to measure at, None for the native size.

    Raises:
        ValueError: fewer than three frames, wrong layout or range.
    """
    frames = as_frames(video)
    if len(frames) < 3:
        raise ValueError(f"motion smoothness needs at least 3 frames, got {len(frames)}")
    turns, before = [], None
    for pair in frame_pairs(frames, flow, flows, size, backward=True):
        if before is not None:
            turns.append(pair_turn(before, pair))
        before = pair
    return motion_smoothness_of(turns, flow_protocol(flow, flows, size))


def motion_smoothness_of(turns: list[float], protocol: dict) -> MetricResult:
    """The result from ``pair_turn`` of neighbouring pairs; its ``per_pair`` has NaN for the first pair."""
    protocol = {**protocol, "formula": "mean |f(i+1) along the track - f(i)|", "units": "px per frame^2, 0 is smooth"}
    if not turns:
        return undefined("motion_smoothness", "fewer than 3 frames", protocol)
    value = mean([turn for turn in turns if not np.isnan(turn)])
    if np.isnan(value):
        protocol["undefined"] = "no pixel could be followed over three frames"
    return MetricResult("motion_smoothness", value, per_pair=(float("nan"), *turns), protocol=protocol)
