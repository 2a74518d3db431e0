"""Metrics, one file each: what it measures, in which units, and what it cannot see stands at the top of each file.

Every metric takes one video (``uint8 f h w c``, or float ``f c h w`` in [-1, 1]) and returns a ``MetricResult``: the
value, the per-pair or per-frame values behind it, and the protocol it was measured with.

The names below are functions, also where a file has the same name: ``from st2v_lib.metrics import mawe`` gives what
``from st2v_lib.metrics.mawe import mawe`` gives.
"""

from st2v_lib.metrics.base import MetricResult, mean_over_videos
from st2v_lib.metrics.clip_score import clip_score, load_clip
from st2v_lib.metrics.drift import drift
from st2v_lib.metrics.flicker import flicker
from st2v_lib.metrics.flow import estimate_flow
from st2v_lib.metrics.flow_smoothness import flow_smoothness
from st2v_lib.metrics.high_pass import high_pass_correlation
from st2v_lib.metrics.long_gap import long_gap
from st2v_lib.metrics.lpips_distance import lpips_distance
from st2v_lib.metrics.mawe import mawe
from st2v_lib.metrics.motion import motion
from st2v_lib.metrics.motion_smoothness import motion_smoothness
from st2v_lib.metrics.overlap import overlap_fidelity, stream_overlap
from st2v_lib.metrics.scene_cuts import scene_cuts
from st2v_lib.metrics.table import format_table, measure
from st2v_lib.metrics.truth import identity_scale, truth_scores
from st2v_lib.metrics.warp import warp_error
from st2v_lib.metrics.xt_slice import xt_seam, xt_slice

__all__ = [
    "MetricResult",
    "clip_score",
    "drift",
    "estimate_flow",
    "flicker",
    "flow_smoothness",
    "format_table",
    "high_pass_correlation",
    "identity_scale",
    "load_clip",
    "long_gap",
    "lpips_distance",
    "mawe",
    "mean_over_videos",
    "measure",
    "motion",
    "motion_smoothness",
    "overlap_fidelity",
    "scene_cuts",
    "stream_overlap",
    "truth_scores",
    "warp_error",
    "xt_seam",
    "xt_slice",
]
