"""Scores that several suites share, as plain ``{name: value}`` dicts of one video."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from st2v_lib.metrics.clip_score import area_preprocess
from st2v_lib.metrics.table import measure
from st2v_lib.video_io import as_frames
from st2v_lib.world.reader import Reader, Reading, read_video
from st2v_lib.world.scores import (
    PIXELS,
    caption_accuracy,
    frames_kept,
    identity,
    identity_error,
    seam_residual,
)

PARTS = ("colour", "shape", "motion", "background", "background_colour")


def read(video: Tensor, reader: Reader, sprites: int = 1) -> Reading:
    """What the reader sees in ``f 3 h w``."""
    return read_video(video, reader, num_sprites=sprites)


def caption_values(reading: Reading, prompt: str, reader: Reader, prefix: str = "") -> dict[str, float]:
    """1 or 0 for each captioned part: is it right in most frames?"""
    shares = caption_accuracy(reading, prompt, reader)
    return {f"{prefix}{part}": float(shares[part] > 0.5) for part in PARTS if not math.isnan(shares[part])}


def permanence(reading: Reading, prompt: str, start: int, stop: int) -> float:
    """Share of frames ``start`` to ``stop`` (exclusive) with the captioned sprites, seen or hidden as they may be."""
    return float(frames_kept(reading, prompt)[1][start:stop].float().mean())


def identity_values(reading: Reading, anchor: Reading, prefix: str = "") -> dict[str, float]:
    """How far sprites are from those of ``anchor``; ``pattern_kept`` is 1 where most frames show its pattern."""
    error = identity_error(reading, identity(anchor))
    out = {f"{prefix}{part}_error": error[part] for part in ("pattern", "shade", "size")}
    wrong = error["pattern"]
    out[f"{prefix}pattern_kept"] = math.nan if math.isnan(wrong) else float(wrong < 0.5)
    return out


def background_shade_error(reading: Reading, truth: float) -> float:
    """Mean distance of the background's shade from the true one, as a share of its range."""
    return float((reading.background_shade - truth).abs().mean())


def seam_values(reading: Reading, seams: list[int], start: int = 0) -> dict[str, float]:
    """Bend of the path at seams and elsewhere from ``start`` on, px at 64, and the share of seams that could be read.

    ``seam_residual`` is their difference: jitter between the seams makes it smaller, so no arm wins by it.
    """
    tracks = [t for t in range(2) if bool(reading.seen[:, t].any())] or [0]
    found = [seam_residual(reading.positions[:, t], seams, start) for t in tracks]
    per_seam = torch.tensor([f.per_seam for f in found])
    return {
        "seam_residual": nanmean([f.value for f in found]), "seam_bend": nanmean([f.seams for f in found]),
        "inside_bend": nanmean([f.inside for f in found]),
        "seams_read": float((~per_seam.isnan()).float().mean()),
    }  # fmt: skip


def speed(reading: Reading, start: int, stop: int) -> float:
    """Mean speed of the sprites seen in frames ``start`` to ``stop``, px a frame at 64."""
    steps = torch.diff(reading.positions[start:stop], dim=0).norm(dim=-1) * PIXELS
    return float(steps.nanmean())


def measured(video: Tensor, prompt: str, clip) -> tuple[dict[str, float], dict]:
    """All truth-free metrics of ``f 3 h w`` at its own size, and the results behind them."""
    results = measure(as_frames(video), prompt, clip, size=None, preprocess=area_preprocess)
    values = {name: float(r.value) for name, r in results.items()}
    for name in ("colour", "contrast"):  # as shares of the early level; grey levels mean little across scenes
        if f"drift_{name}_signed" in results:
            late = results[f"drift_{name}_signed"]
            series = late.per_frame
            early = nanmean(series[: max(1, round(late.protocol["share"] * len(series)))]) if series else math.nan
            if early:
                values[f"drift_{name}_signed_share"] = late.value / early
                values[f"drift_{name}_abs_share"] = abs(late.value) / early
    return values, results


def nanmean(values) -> float:
    """Mean of what is not nan; nan when nothing is left."""
    kept = [float(v) for v in values if not math.isnan(v)]
    return math.fsum(kept) / len(kept) if kept else math.nan
