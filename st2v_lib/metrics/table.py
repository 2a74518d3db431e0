"""All metrics of one video in one pass: each frame is decoded once, each flow computed once, two frames are held.

Scores against the truth of the sprite world (``truth.py``) join the dict that ``measure`` returns when it is given a
collector for them; the other metrics need no truth and work on any video.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from st2v_lib.errors import UserError
from st2v_lib.metrics import base, clip_score, drift, flicker, flow_smoothness, mawe, motion, scene_cuts, warp
from st2v_lib.metrics.flow import flow_protocol, frame_pairs
from st2v_lib.metrics.truth import TruthScores
from st2v_lib.video_io import as_frames, iter_video, probe


def measure(
    video: str | os.PathLike | np.ndarray | Iterable[np.ndarray],
    prompt: str | None = None,
    clip: tuple | None = None,
    flow: str = "dis",
    size: tuple[int, int] | None = mawe.SIZE,
    preprocess: Callable | None = None,
    scene_parameters: dict | None = None,
    progress: bool = False,
    motion_floor: float | None = None,
    truth: TruthScores | None = None,
) -> dict[str, base.MetricResult]:
    """Run every metric on one video, in memory that does not grow with its length.

    Args:
        video: a path (mp4, folder of images, .npy, .npz), an array as for any metric, or an iterable of
            ``uint8 h w c`` frames.
        prompt: the text for the CLIP score; None leaves that metric out.
        clip: (model, tokenizer) of ``clip_score.load_clip``; needed with a prompt.
        flow: estimator for all metrics that need flow.
        size: (h, w) at which flow and warp errors are measured, by default the 720x720 of the released script.
        preprocess: see ``clip_score.clip_score``.
        scene_parameters: see ``scene_cuts.scene_cuts``.
        progress: show a progress bar.
        motion_floor: see ``mawe.mawe``; by default in proportion to the measured size.
        truth: collects frames for the scores of the sprite world; None leaves them out.

    Returns:
        Results by name. Metrics without a value on this video (a single frame, no motion) are NaN and say why.

    Raises:
        UserError: the file cannot be read; a prompt without a CLIP.
        ValueError: wrong layout or range, unknown estimator.
    """
    if prompt is not None and clip is None:
        raise UserError("a prompt needs a CLIP model to be compared with: give `clip=(model, tokenizer)`")
    text = clip_score.prompt_embedding(prompt, *clip) if prompt is not None else None
    cuts = scene_cuts.CutFinder(**(scene_parameters or {}))
    looks, lumas, lengths, scores = [], [], [], []
    terms: dict[str, list] = {variant: [] for variant in mawe.VARIANTS}

    def look_at_each(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for frame in frames:
            cuts.add(frame)
            looks.append(drift.frame_look(frame))
            lumas.append(flicker.mean_luma(frame))
            if truth is not None:
                truth.add(frame)
            if text is not None:
                scores.extend(clip_score.frame_scores(frame[None], text, clip[0], preprocess))
            yield frame

    for pair in frame_pairs(look_at_each(_frames(video, progress)), flow, size=size, backward=True):
        if motion_floor is None:
            motion_floor = mawe.floor_at(*pair.first.shape[:2])
        lengths.append(motion.pair_motion(pair))
        terms["code"].append(mawe.pair_terms(pair, "code"))
        terms["paper"].append(mawe.pair_terms(pair, "paper"))
    if not looks:
        raise UserError("the video has no frames")

    errors = [error for error, _, _ in terms["code"]]
    settings = flow_protocol(flow, None, size)
    floor = mawe.MOTION_FLOOR if motion_floor is None else motion_floor
    results = [mawe.mawe_of(terms[variant], variant, settings, motion_floor=floor) for variant in mawe.VARIANTS]
    results += [warp.warp_error_of(errors, settings), motion.motion_of(lengths, settings)]
    if not lengths:
        results = [base.undefined(result.name, "fewer than 2 frames", settings) for result in results]
    results += [flow_smoothness.flow_smoothness_of(lengths, settings), cuts.result(), flicker.flicker_of(lumas)]
    if text is not None:
        results.append(clip_score.clip_score_of(scores, prompt, clip_score.name_of(clip[0]), preprocess))
    found = {result.name: result for result in results} | drift.drift_of(looks, lengths, settings)
    return found | (truth.results() if truth is not None else {})


def _frames(video, progress: bool) -> Iterable[np.ndarray]:
    total = None
    if isinstance(video, (str, os.PathLike)):
        if progress and os.path.isfile(video) and not str(video).endswith((".npy", ".npz")):
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


def format_table(results: dict[str, base.MetricResult]) -> str:
    """Aligned text: one line a metric, then the protocol they share and what was left out."""
    width = max(len(name) for name in results)
    lines = []
    for name, result in results.items():
        note = UNITS.get(name) or result.protocol.get("units", "")
        if "reader_error" in result.protocol:
            note += f"; on clean renderings the reader gives {result.protocol['reader_error']}"
        static = result.protocol.get("static_pairs")
        if static:
            floor = f"under {result.protocol['motion_floor_px']:.2g} px"
            note += f"; {len(static)} of {result.protocol['pairs']} pairs ({floor}) nearly static, left out"
        if "undefined" in result.protocol:
            note = f"not defined: {result.protocol['undefined']}"
        lines.append(f"{name:<{width}}  {result.value:>12.4f}  {note}")
    lines.append("")
    motion_protocol = results["motion"].protocol if "motion" in results else {}
    if "flow" in motion_protocol:
        extra = motion_protocol.get("flow_settings", "")
        lines.append(f"flow: {motion_protocol['flow']} ({extra}), measured at {motion_protocol['measured_at']}")
    if "scuts" in results:
        p = results["scuts"].protocol
        lines.append(f"scuts: {p['detector']}, " + ", ".join(f"{k} {p[k]}" for k in scene_cuts.DEFAULTS if k in p))
    if "clip_score" in results:
        p = results["clip_score"].protocol
        lines.append(f"clip_score: {p['clip']}; {p['preprocess']}")
    seams = results["seam_residual"].protocol.get("seams") if "seam_residual" in results else None
    if seams:
        lines.append(f"seams: frames {', '.join(map(str, seams[:3]))}{', …' if len(seams) > 3 else ''}")
    return "\n".join(lines)
