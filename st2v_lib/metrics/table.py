"""All metrics of one video in one pass: each frame is decoded once, each flow computed once, few frames are held.

What grows with the length is a handful of numbers a frame. Scores against the truth of the sprite world (``truth.py``)
join the dict that ``measure`` returns when it is given a collector for them; the other metrics need no truth and work
on any video.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from st2v_lib.errors import UserError
from st2v_lib.metrics.base import MetricResult, mean, undefined
from st2v_lib.metrics.clip_score import (
    agreement,
    clip_protocol,
    clip_score_of,
    distance,
    embed_frames,
    prompt_embedding,
)
from st2v_lib.metrics.drift import drift_of, frame_look
from st2v_lib.metrics.flicker import flicker_of, mean_luma
from st2v_lib.metrics.flow import Pair, flow_protocol, frame_pairs
from st2v_lib.metrics.flow_smoothness import flow_smoothness_of
from st2v_lib.metrics.high_pass import high_pass_of, pair_correlation
from st2v_lib.metrics.long_gap import GapCounter
from st2v_lib.metrics.lpips_distance import frame_distance, lpips_of
from st2v_lib.metrics.mawe import MOTION_FLOOR, SIZE, VARIANTS, floor_at, mawe_of, pair_terms
from st2v_lib.metrics.motion import motion_of, pair_motion
from st2v_lib.metrics.motion_smoothness import motion_smoothness_of, pair_turn
from st2v_lib.metrics.scene_cuts import DEFAULTS, CutFinder
from st2v_lib.metrics.truth import TruthScores
from st2v_lib.metrics.warp import warp_error_of
from st2v_lib.metrics.xt_slice import line_change, line_of, xt_seam_of
from st2v_lib.video_io import ARRAY_SUFFIXES, as_frames, iter_video, probe

CLIP_BATCH = 16  # frames held for the CLIP, which is faster by the batch


def measure(
    video: str | os.PathLike | np.ndarray | torch.Tensor | Iterable[np.ndarray],
    prompt: str | None = None,
    clip: tuple | None = None,
    flow: str = "dis",
    size: tuple[int, int] | None = SIZE,
    preprocess: Callable | None = None,
    scene_parameters: dict | None = None,
    progress: bool = False,
    motion_floor: float | None = None,
    truth: TruthScores | None = None,
    seams: Sequence[int] = (),
    overlaps: Sequence[tuple[int, int]] = (),
    lpips: Callable | None = None,
    prefixes: Sequence[int] = (),
) -> dict[str, MetricResult]:
    """Run every metric on one video, in memory that hardly grows with its length.

    Args:
        video: a path (mp4, folder of images, .npy, .npz), an array as for any metric, or an iterable of
            ``uint8 h w c`` frames.
        prompt: the text for the CLIP score; None leaves that metric out.
        clip: (model, tokenizer) of ``clip_score.load_clip``; needed with a prompt. Without one it gives the drift of
            the CLIP distance alone.
        flow: estimator for all metrics that need flow.
        size: (h, w) at which flow and what rests on it are measured, by default the 720x720 of the released script.
        preprocess: see ``clip_score.clip_score``.
        scene_parameters: see ``scene_cuts.scene_cuts``.
        progress: show a progress bar.
        motion_floor: see ``mawe.mawe``; by default in proportion to the measured size.
        truth: collects frames for the scores of the sprite world; None leaves them out.
        seams: first frame of each chunk but the first, for the seam number of the x-t slice and CLIP scores by chunk.
        overlaps: frames that two chunks share, (first, one after the last): see ``high_pass`` and ``flow_smoothness``.
        lpips: network of ``lpips_distance.load_lpips``; None leaves that metric out.
        prefixes: numbers of frames; MAWE and the CLIP score of so many first ones, as far as the video has them, join
            their protocols as ``"of_first_frames"``.

    Returns:
        Results by name. Metrics without a value on this video (a single frame, no motion) are NaN and say why. Results
        of a file say in ``protocol["source"]`` how its pixels are kept.

    Raises:
        UserError: the file cannot be read; a prompt without a CLIP.
        ValueError: wrong layout or range, unknown estimator, seams or overlaps outside the video.
    """
    if prompt is not None and clip is None:
        raise UserError("a prompt needs a CLIP model to be compared with: give `clip=(model, tokenizer)`")
    text = prompt_embedding(prompt, *clip) if prompt is not None else None
    cuts, gaps = CutFinder(**(scene_parameters or {})), GapCounter()
    looks, lumas, lines, scores, distances, lpips_values, waiting = [], [], [], [], [], [], []
    lengths, correlations, turns = [], [], []
    terms: dict[str, list] = {variant: [] for variant in VARIANTS}
    first: dict[str, np.ndarray | torch.Tensor] = {}

    def embed() -> None:
        vectors = embed_frames(np.stack(waiting), clip[0], preprocess)
        waiting.clear()
        anchor = first.setdefault("vector", vectors[0])
        distances.extend(distance(vector, anchor) for vector in vectors)
        if text is not None:
            scores.extend(agreement(vectors, text))

    def look_at_each(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        before = None
        for frame in frames:
            cuts.add(frame)
            gaps.add(frame)
            looks.append(frame_look(frame))
            lumas.append(mean_luma(frame))
            line = line_of(frame)
            if before is not None:
                lines.append(line_change(before, line))
            before = line
            if clip is not None:
                waiting.append(frame)
                if len(waiting) == CLIP_BATCH:
                    embed()
            if lpips is not None:
                lpips_values.append(frame_distance(frame, first.setdefault("frame", frame), lpips))
            if truth is not None:
                truth.add(frame)
            yield frame
        if waiting:
            embed()

    before: Pair | None = None
    for pair in frame_pairs(look_at_each(_frames(video, progress)), flow, size=size, backward=True):
        if motion_floor is None:
            motion_floor = floor_at(*pair.first.shape[:2])
        lengths.append(pair_motion(pair))
        correlations.append(pair_correlation(pair))
        for variant in VARIANTS:
            terms[variant].append(pair_terms(pair, variant))
        if before is not None:
            turns.append(pair_turn(before, pair))
        before = pair
    if not looks:
        raise UserError("the video has no frames")

    settings = flow_protocol(flow, None, size)
    floor = MOTION_FLOOR if motion_floor is None else motion_floor
    score = lambda variant, n: mawe_of(terms[variant][: n - 1], variant, settings, motion_floor=floor)  # noqa: E731
    results = [score(variant, len(looks)) for variant in VARIANTS]
    prefixes = [n for n in prefixes if 2 <= n <= len(looks)]
    for result, variant in zip(results, VARIANTS) if prefixes else ():
        result.protocol["of_first_frames"] = {n: score(variant, n).value for n in prefixes}
    results += [warp_error_of([error for error, _, _ in terms["code"]], settings), motion_of(lengths, settings)]
    results.append(high_pass_of(correlations, settings, overlaps))
    if not lengths:
        results = [undefined(result.name, "fewer than 2 frames", settings) for result in results]
    results += [flow_smoothness_of(lengths, settings, overlaps), motion_smoothness_of(turns, settings)]
    results += [cuts.result(), flicker_of(lumas), gaps.result()]
    if seams:
        results.append(xt_seam_of(lines, seams))
    if text is not None:
        results.append(clip_score_of(scores, prompt, clip_protocol(clip[0], preprocess), seams))
        if prefixes:
            results[-1].protocol["of_first_frames"] = {n: mean(scores[:n]) for n in prefixes}
    if lpips is not None:
        results.append(lpips_of(lpips_values, lpips))
    drift_settings = {"motion": settings}
    if clip is not None:
        drift_settings["clip_distance"] = clip_protocol(clip[0], preprocess)
    found = {result.name: result for result in results}
    found |= drift_of(looks, lengths, distances if clip is not None else None, drift_settings)
    if truth is not None:
        found |= truth.results()
    kept = source_of(video)
    if kept is None:
        return found
    return {name: replace(result, protocol={**result.protocol, "source": kept}) for name, result in found.items()}


def source_of(video) -> str | None:
    """How the pixels of a file are kept, for the protocol; None for arrays, which are exact.

    An mp4 usually keeps colour at half the resolution (4:2:0). Small, saturated pictures then have warp errors several
    times those of the same frames as an array: compare files with files, and arrays with arrays.
    """
    if not isinstance(video, (str, os.PathLike)) or Path(video).suffix.lower() in ARRAY_SUFFIXES:
        return None
    if Path(video).is_dir():
        return "images"
    info = probe(video)
    return f"{info['codec']}, {info['pixel_format'] or 'unknown pixel format'}"


def _frames(video, progress: bool) -> Iterable[np.ndarray]:
    total = None
    if isinstance(video, (str, os.PathLike)):
        if progress and os.path.isfile(video) and Path(video).suffix.lower() not in ARRAY_SUFFIXES:
            total = probe(video)["frames"]
        frames = iter_video(video)
    elif hasattr(video, "ndim"):
        frames = as_frames(video)
    else:
        frames = video
    if not progress:
        return frames
    from tqdm import tqdm

    return tqdm(frames, total=total if total is not None else (len(frames) if hasattr(frames, "__len__") else None))


UNITS = {
    "mawe_code": "grey levels^2 / px, lower is better",
    "mawe_paper": "grey levels^2 / px^2, lower is better",
    "warp_error": "grey levels^2",
    "motion": "px per frame",
    "flow_deviation": "px per frame, lower is smoother",
    "scuts": "cuts, lower is better",
    "flicker": "grey levels, lower is better",
    "clip_score": "100 x cosine, higher is better",
}


def format_table(results: dict[str, MetricResult]) -> str:
    """Aligned text: one line a metric, then the protocol they share and what was left out."""
    width = max(len(name) for name in results)
    lines = []
    for name, result in results.items():
        p = result.protocol
        note = UNITS.get(name) or p.get("units", "")
        if "reader_error" in p:
            note += f"; on clean renderings the reader gives {p['reader_error']}"
        if "chance" in p:
            note += f"; reader's floor {p['floor']:.2f}, chance {p['chance']:.2f}"
        if p.get("static_pairs"):
            floor = f"under {p['motion_floor_px']:.2g} px"
            note += f"; {len(p['static_pairs'])} of {p['pairs']} pairs ({floor}) nearly static, left out"
        if "difference" in p:
            note += f"; inside overlaps {p['inside_overlaps']:.3f}, elsewhere {p['elsewhere']:.3f}"
        if "undefined" in p:
            note = f"not defined: {p['undefined']}"
        lines.append(f"{name:<{width}}  {result.value:>12.4f}  {note}")
    lines.append("")
    motion_protocol = results["motion"].protocol if "motion" in results else {}
    if "flow" in motion_protocol:
        extra = motion_protocol.get("flow_settings", "")
        lines.append(f"flow: {motion_protocol['flow']} ({extra}), measured at {motion_protocol['measured_at']}")
    if "scuts" in results:
        p = results["scuts"].protocol
        lines.append(f"scuts: {p['detector']}, " + ", ".join(f"{k} {p[k]}" for k in DEFAULTS if k in p))
    if "clip_score" in results:
        p = results["clip_score"].protocol
        lines.append(f"clip_score: {p['clip']}; {p['preprocess']}")
        if "per_chunk" in p:
            lines.append("  by chunk: " + " ".join(f"{value:.1f}" for value in p["per_chunk"]))
    source = next((r.protocol["source"] for r in results.values() if "source" in r.protocol), None)
    if source is not None:
        colour = " (colour at half the resolution: not to be compared with arrays)" if "420" in source else ""
        lines.append(f"source: {source}{colour}")
    seams = results["seam_residual"].protocol.get("seams") if "seam_residual" in results else None
    if seams:
        lines.append(f"seams: frames {', '.join(map(str, seams[:3]))}{', …' if len(seams) > 3 else ''}")
    return "\n".join(lines)
