"""``st2v metrics VIDEO [--prompt "..."] [--json]``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from st2v_lib.blending import chunk_starts, overlaps
from st2v_lib.errors import UserError
from st2v_lib.manifest import weights_dir
from st2v_lib.metrics.clip_score import area_preprocess, load_clip
from st2v_lib.metrics.lpips_distance import load_lpips
from st2v_lib.metrics.mawe import SIZE
from st2v_lib.metrics.table import format_table, measure
from st2v_lib.metrics.truth import TruthScores, seams_of, world_truth
from st2v_lib.video_io import ARRAY_SUFFIXES, iter_video, probe
from st2v_lib.world.captions import check_prompt

SMALL = 256  # videos below this side are measured as they are, larger ones at the released script's 720x720


def run(args) -> int:
    """Print the metrics of one video.

    With a prompt, the CLIP score is added, and for a prompt of the sprite world the scores against its truth. A file
    that ``st2v generate`` wrote says where its chunks meet; then the numbers about seams and overlaps are added.

    Args:
        args: ``video`` (mp4, folder of images, .npy or .npz), ``prompt`` (or None), ``json`` (bool), and optionally
            ``clip``, the folder of another CLIP than the small one of the sprite world, ``flow``, an estimator,
            ``min_scene_len`` of SCuts, and ``lpips`` (bool).

    Returns:
        The exit code, 0.

    Raises:
        UserError: anything the user can put right; the caller prints its message and exits with a code other than 0.
    """
    own, clip, preprocess, truth = getattr(args, "clip", None), None, None, None
    if args.prompt is None and own is not None:
        raise UserError("--clip scores the prompt: give --prompt, too")
    if args.prompt is not None:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            prompt = check_prompt(args.prompt) if own is None else args.prompt
        for note in notes:
            print(f"note: {note.message}", file=sys.stderr)
        clip = load_clip(own or weights_dir("tiny"))
        preprocess = area_preprocess if own is None else None
    lpips = load_lpips() if getattr(args, "lpips", False) else None
    size, frames, metadata = _look(args.video)
    if clip is not None:
        truth = _truth(prompt, metadata, size)
    shortest = getattr(args, "min_scene_len", None)
    if shortest is not None and shortest < 1:
        raise UserError(f"--min-scene-len is at least 1 frame, got {shortest}")
    try:
        results = measure(
            args.video, args.prompt, clip, preprocess=preprocess, truth=truth, lpips=lpips,
            flow=getattr(args, "flow", None) or "dis", size=None if min(size) < SMALL else SIZE,
            scene_parameters=None if shortest is None else {"min_scene_len": shortest},
            seams=seams_of(frames, metadata) if {"seams", "stride"} & set(metadata) else (),
            overlaps=overlaps_of(frames, metadata, size[0]), progress=sys.stderr.isatty(),
        )  # fmt: skip
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{args.video}: {error}") from None
    if args.json:
        print(json.dumps({name: result.to_dict() for name, result in results.items()}, indent=1, allow_nan=False))
    else:
        print(format_table(results))
    return 0


def overlaps_of(frames: int, metadata: dict[str, Any], height: int) -> list[tuple[int, int]]:
    """The frames that two chunks of the enhancer share, as (first, one after the last).

    Args:
        frames: length of the video.
        metadata: of the file: its ``config`` tells the enhancer's size, chunk and overlap.
        height: of the video; another than the enhancer's means that stage 3 was left out, and nothing overlaps.
    """
    enhancer = (metadata.get("config") or {}).get("enhancer") or {}
    if enhancer.get("size") != height or not {"chunk_frames", "overlap_frames"} <= set(enhancer):
        return []
    starts = chunk_starts(frames, enhancer["chunk_frames"], enhancer["overlap_frames"])
    widths = overlaps(starts, enhancer["chunk_frames"])
    return [(start, min(start + width, frames)) for start, width in zip(starts, widths) if width > 0]


def _look(video: str | os.PathLike) -> tuple[tuple[int, int], int, dict]:
    """Height and width, and of a video file its length and the metadata that ``st2v generate`` wrote."""
    path = Path(video)
    if path.is_file() and path.suffix.lower() not in ARRAY_SUFFIXES:
        info = probe(path)
        return (info["height"], info["width"]), info["frames"], info["metadata"]
    return next(iter_video(path)).shape[:2], 0, {}


def _truth(prompt: str, metadata: dict, size: tuple[int, int]) -> TruthScores | None:
    """The collector of truth-based scores, where the prompt is of the sprite world and the frames are square."""
    if world_truth(prompt) is None or size[0] != size[1]:
        return None
    from st2v_lib.world.reader import load_reader

    return TruthScores(prompt, load_reader(), metadata)
