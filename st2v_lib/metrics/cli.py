"""``st2v metrics VIDEO [--prompt "..."] [--json]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from st2v_lib.errors import UserError
from st2v_lib.metrics.clip_score import load_clip
from st2v_lib.metrics.table import format_table, measure

CLIP_FOLDER = Path(__file__).resolve().parents[2] / "data" / "weights" / "tiny" / "clip"


def run(args) -> int:
    """Print the metrics of one video.

    Args:
        args: ``video`` (mp4, folder of images, .npy or .npz), ``prompt`` (or None), ``json`` (bool), and optionally
            ``clip``, the folder of another CLIP than the one of the sprite world.

    Returns:
        The exit code, 0.

    Raises:
        UserError: anything the user can put right; the caller prints its message and exits with a code other than 0.
    """
    clip = None
    if args.prompt is not None:
        if not args.prompt.strip():
            raise UserError("the prompt is empty")
        clip = load_clip(getattr(args, "clip", None) or CLIP_FOLDER)
    try:
        results = measure(args.video, args.prompt, clip, progress=sys.stderr.isatty())
    except ValueError as error:
        raise UserError(f"{args.video}: {error}") from None
    if args.json:
        print(json.dumps({name: result.to_dict() for name, result in results.items()}, indent=1, allow_nan=False))
    else:
        print(format_table(results))
    return 0
