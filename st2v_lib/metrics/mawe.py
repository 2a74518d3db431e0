"""MAWE, motion-aware warp error (paper §12): warp error in relation to motion, so that standing still is no way to win.

The paper and the script released with it define it differently, and their numbers lie on different scales:

* ``variant="code"``: mean over pairs of W_i / (9.5 OFS_i). W_i is the forward-splat error (``warp.splat_error``, no
  occlusion test), OFS_i the mean length of the flow in pixels. Frames are first resized to 720x720, aspect ratio lost.
* ``variant="paper"``: W / OFS of the whole video. W is the mean error without occluded pixels (``warp.visible_error``),
  OFS the mean of the *squared* flow length. The paper leaves open how to warp and how to find occlusions; both are
  chosen in ``warp.py``.

Units: squared grey levels (0..255) per pixel of motion, or per squared pixel. Both depend on the resolution and on the
estimator (the paper: RAFT-large at 720x720), so numbers compare only under one protocol.

Nearly static pairs: a pair that moves less than ``motion_floor`` (mean flow length over the frame) has no meaningful
ratio. Such pairs are left out and listed in the protocol; if all are, the value is NaN. The raw formula, infinities
included, is ``motion_floor=0``. The default is 0.1 px at 720x720 and in proportion at other sizes (``floor_at``): the
same motion, drawn smaller, moves fewer pixels; never under 0.02 px, near what noise gives. It looks small because
the mean is over the frame: one sprite of the sprite world covers a twentieth of it, and at its slowest still gives
0.05 px.

What it cannot see: a wrong object that moves consistently, and quality where nothing moves. Noise and cuts raise the
flow itself, and with it the denominator.
"""

from __future__ import annotations

import math

import numpy as np

from st2v_lib.metrics.base import MetricResult, mean
from st2v_lib.metrics.flow import Pair, flow_protocol, frame_pairs, two_or_more
from st2v_lib.metrics.motion import mean_length, mean_square
from st2v_lib.metrics.warp import splat_error, visible_error
from st2v_lib.video_io import as_frames

SIZE = (720, 720)
COEFFICIENT = 9.5
MOTION_FLOOR = 0.1  # px, at SIZE
VARIANTS = ("code", "paper")


def floor_at(h: int, w: int) -> float:
    """The default motion floor in px for frames measured at ``h x w``: 0.1 px for a shorter side of 720.

    Never under 0.02 px: flow reads 0.01 px in a still 64-pixel video with noise of one grey level.
    """
    return max(MOTION_FLOOR * min(h, w) / SIZE[0], 0.02)


def mawe(
    video,
    variant: str = "code",
    flow: str = "dis",
    flows: np.ndarray | None = None,
    backward_flows: np.ndarray | None = None,
    size: tuple[int, int] | None = SIZE,
    coefficient: float = COEFFICIENT,
    motion_floor: float | None = None,
) -> MetricResult:
    """MAWE of one video; lower is better.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        variant: ``"code"`` or ``"paper"``.
        flow: estimator, see ``flow.py``.
        flows: given flow ``f-1 2 h w`` from frame i to i + 1, at the measured size, instead of an estimator.
        backward_flows: given flow back, for the occlusions of ``"paper"``; without it, beside given ``flows``, only
            pixels that leave the frame are left out.
        size: (h, w) the frames are resized to; None keeps their size.
        coefficient: the constant in the denominator of ``"code"``.
        motion_floor: mean flow length in px under which a pair is left out; 0 for the raw formula, None for
            ``floor_at`` of the measured size.

    Returns:
        The value, ``per_pair`` ratios (NaN for pairs left out) and the protocol, with the indices of those pairs and
        the means of error and motion over the others.

    Raises:
        ValueError: unknown variant, fewer than two frames, wrong layout or range, flows that do not fit.
    """
    if variant not in VARIANTS:
        raise ValueError(f"expected a variant out of {VARIANTS}, got {variant!r}")
    frames = two_or_more(as_frames(video), "MAWE")
    pairs = frame_pairs(frames, flow, flows, size, variant == "paper", backward_flows)
    terms = [pair_terms(pair, variant) for pair in pairs]
    protocol = flow_protocol(flow, flows, size)
    if variant == "paper" and flows is not None:
        protocol["occlusion"] = "given backward flow" if backward_flows is not None else "leaving the frame only"
    if motion_floor is None:
        motion_floor = floor_at(*(size or frames.shape[1:3]))
    return mawe_of(terms, variant, protocol, coefficient, motion_floor)


def pair_terms(pair: Pair, variant: str) -> tuple[float, float, float]:
    """What MAWE needs of a pair: its error, its motion term, and its mean flow length for the floor."""
    length = mean_length(pair.forward)
    if variant == "code":
        return splat_error(pair), length, length
    return visible_error(pair), mean_square(pair.forward), length


def mawe_of(
    terms: list[tuple[float, float, float]],
    variant: str,
    protocol: dict,
    coefficient: float = COEFFICIENT,
    motion_floor: float = MOTION_FLOOR,
) -> MetricResult:
    """The result from ``pair_terms`` of all pairs."""
    static = [i for i, (_, _, length) in enumerate(terms) if length < motion_floor]
    hidden = [i for i, (error, _, _) in enumerate(terms) if math.isnan(error) and i not in static]
    used = [i for i in range(len(terms)) if i not in {*static, *hidden}]
    factor = coefficient if variant == "code" else 1.0
    ratios = [_ratio(error, factor * amount) for error, amount, _ in terms]
    if variant == "code":
        value = mean([ratios[i] for i in used])
    else:
        value = _ratio(mean([terms[i][0] for i in used]), mean([terms[i][1] for i in used]))
    for i in static + hidden:
        ratios[i] = math.nan
    protocol = {
        **protocol,
        "variant": variant,
        "formula": f"mean of W_i / ({coefficient:g} |flow|_i)" if variant == "code" else "mean W / mean |flow|^2",
        "range": "0..255",
        "motion_floor_px": motion_floor,
        "pairs": len(terms),
        "static_pairs": static,
    }
    if used:
        protocol["mean_error"] = mean([terms[i][0] for i in used])
        protocol["mean_motion"] = mean([terms[i][1] for i in used])
    if variant == "paper":
        protocol = {"occlusion": "forward-backward check", **protocol, "fully_occluded_pairs": hidden}
    if not used:
        protocol["undefined"] = "no pair moves more than the motion floor"
    return MetricResult(f"mawe_{variant}", value, per_pair=tuple(ratios), protocol=protocol)


def _ratio(error: float, amount: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(error) / np.float64(amount))
