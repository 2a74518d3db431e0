"""``st2v metrics VIDEO [--prompt "..."] [--json]``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

from st2v_lib.errors import UserError
from st2v_lib.manifest import weights_dir
from st2v_lib.metrics import mawe
from st2v_lib.metrics.clip_score import area_preprocess, load_clip
from st2v_lib.metrics.table import format_table, measure
from st2v_lib.metrics.truth import TruthScores, world_truth
from st2v_lib.video_io import iter_video, probe
from st2v_lib.world.captions import check_prompt

SMALL = 256  # videos below this side are measured as they are, larger ones at the released script's 720x720


def run(args) -> int:
    """Print the metrics of one video.

    With a prompt, the CLIP score is added, and for a prompt of the sprite world the scores against its truth.

    Args:
        args: ``video`` (mp4, folder of images, .npy or .npz), ``prompt`` (or None), ``json`` (bool), and optionally
            ``clip``, the folder of another CLIP than the small one of the sprite world.

    Returns:
        The exit code, 0.

    Raises:
        UserError: anything the user can put right; the caller prints its message and exits with a code other than 0.
    """
    clip = preprocess = truth = None
    if args.prompt is not None:
        own = getattr(args, "clip", None)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            prompt = check_prompt(args.prompt) if own is None else args.prompt
        for note in notes:
            print(f"note: {note.message}", file=sys.stderr)
        clip = load_clip(own or weights_dir("tiny"))
        preprocess = area_preprocess if own is None else None
    size, metadata = _look(args.video)
    if clip is not None:
        truth = _truth(prompt, metadata, size)
    at = None if min(size) < SMALL else mawe.SIZE
    try:
        results = measure(
            args.video, args.prompt, clip, size=at, preprocess=preprocess, progress=sys.stderr.isatty(), truth=truth
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{args.video}: {error}") from None
    if args.json:
        print(json.dumps({name: result.to_dict() for name, result in results.items()}, indent=1, allow_nan=False))
    else:
        print(format_table(results))
    return 0


def _look(video: str | os.PathLike) -> tuple[tuple[int, int], dict]:
    """Height and width, and the metadata of a file that ``st2v generate`` wrote."""
    path = Path(video)
    if path.is_file() and path.suffix.lower() not in (".npy", ".npz"):
        info = probe(path)
        return (info["height"], info["width"]), info["metadata"]
    return next(iter_video(path)).shape[:2], {}


def _truth(prompt: str, metadata: dict, size: tuple[int, int]) -> TruthScores | None:
    """The collector of truth-based scores, where the prompt is of the sprite world and the frames are square."""
    if world_truth(prompt) is None or size[0] != size[1]:
        return None
    from st2v_lib.world.reader import load_reader

    return TruthScores(prompt, load_reader(), metadata)
