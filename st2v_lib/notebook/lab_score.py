"""What the ablation lab measures of a video: a few numbers for the table, and a value a chunk for the curves.

The numbers are those of the fair tests (``evaluation.scoring``), on one video: one pair of videos is an anecdote.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from st2v_lib.evaluation.enhancer_levels import psnr
from st2v_lib.evaluation.scoring import caption_values, identity_values, measured, nanmean, permanence, read
from st2v_lib.metrics.base import mean
from st2v_lib.metrics.table import measure
from st2v_lib.metrics.xt_slice import xt_seam
from st2v_lib.notebook.lab_state import CHUNK, Arm, LabState
from st2v_lib.video_io import as_frames
from st2v_lib.world.scores import seam_residual

SHOWN = {  # name: label, and which way is better: -1 lower, 1 higher, 0 neither
    "seam_residual": ("jump at seams, px", -1),
    "xt_seam": ("x–t slice: change at seams", -1),
    "clip_score": ("CLIP score", 1),
    "late_colour": ("right colour at the end", 1),
    "late_shape": ("right shape at the end", 1),
    "late_motion": ("right motion at the end", 1),
    "permanence": ("frames with the sprite", 1),
    "late_pattern_error": ("pattern lost", -1),
    "late_shade_error": ("shade lost", -1),
    "motion": ("motion, px a frame", 0),
    "motion_smoothness": ("change of motion", -1),
    "mawe_code": ("MAWE", -1),
    "warp_error": ("warp error", -1),
    "flicker": ("flicker", -1),
    "scuts": ("SCuts", -1),
    "psnr": ("PSNR to the truth, dB", 1),
    "flow_deviation": ("flow deviation", -1),
    "high_pass_correlation": ("fine detail kept in motion", 1),
}
STAGE_3 = (
    "psnr", "high_pass_correlation", "xt_seam", "flow_deviation", "warp_error", "flicker", "motion", "clip_score",
)  # fmt: skip
CURVES = ("CLIP score", "motion, px a frame", "change of the mid line", "shade lost")


def score(
    video: Tensor, arm: Arm, state: LabState, seams: tuple[int, ...], bench, truth: Tensor | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    """Numbers and curves of one video.

    Args:
        video: ``f 3 h w`` in [-1, 1].
        arm: its prompt is what the video is held against.
        state: its stage decides what is measured.
        seams: first frame of each chunk but the first.
        bench: gives reader and CLIP, either of which may be missing.
        truth: what the video should be, ``f 3 h w``.

    Returns:
        Values by name (keys of ``SHOWN``), and for each of ``CURVES`` one value a chunk.
    """
    if bench.clip is None:
        results = measure(as_frames(video), size=None)
        values = {name: float(result.value) for name, result in results.items()}
    else:
        values, results = measured(video, arm.prompt, bench.clip)
    values["xt_seam"] = float(xt_seam(video, seams).value) if seams else math.nan
    if truth is not None:
        values["psnr"] = psnr(video, truth)
    reading = None
    if state.stage == 2 and bench.reader is not None:
        reading = read(video, bench.reader)
        values |= _read_values(reading, arm, seams, bench)
    names = STAGE_3 if state.stage == 3 else [name for name in SHOWN if name not in STAGE_3[:2]]
    kept = {name: values.get(name, math.nan) for name in SHOWN if name in names}
    return kept, _curves(video, results, reading, seams)


def _read_values(reading, arm: Arm, seams: tuple[int, ...], bench) -> dict[str, float]:
    out = {"seam_residual": seam_residual(reading.positions[:, 0], seams).value if seams else math.nan}
    out |= caption_values(reading[-CHUNK:], arm.prompt, bench.reader, "late_")
    out |= identity_values(reading[CHUNK:], reading[:CHUNK], "late_")
    return out | {"permanence": permanence(reading, arm.prompt, CHUNK, len(reading))}


def _curves(video: Tensor, results: dict, reading, seams: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    """For each of ``CURVES`` a mean over each chunk's new frames; pairs belong to the chunk of their second frame."""
    edges = list(zip((0, *seams), (*seams, len(video))))
    middle = (torch.diff(video[:, :, video.shape[2] // 2], dim=0).abs().mean(dim=(1, 2)) * 127.5).tolist()
    per_pair = {
        "motion, px a frame": list(results["motion"].per_pair or ()),
        "change of the mid line": middle,
    }
    out = {name: tuple(nanmean(pairs[max(0, a - 1) : b - 1]) for a, b in edges) for name, pairs in per_pair.items()}
    if "clip_score" in results:
        frames = results["clip_score"].per_frame
        out["CLIP score"] = tuple(mean(frames[a:b]) for a, b in edges)
    if reading is not None:
        errors = [identity_values(reading[a:b], reading[:CHUNK])["shade_error"] for a, b in edges]
        out["shade lost"] = tuple(errors)
    return {name: out[name] for name in CURVES if name in out}
