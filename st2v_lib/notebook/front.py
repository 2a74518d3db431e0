"""The moving picture at the top of the README, made from the shipped weights.

    python -m st2v_lib.notebook.front

Three prompts, one seed, nothing picked: stage 2 above, enlarged to the size of stage 3, whose frames are below, and a
line of time with a gap where a new chunk begins. ``data/front.webp`` is the picture, ``data/front.json`` says what it
was made from; with ``--check`` the command only tells whether that is what is shipped now.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from st2v_lib.errors import OutputError
from st2v_lib.manifest import data_dir, weights_mark
from st2v_lib.notebook.show import INK, side_by_side
from st2v_lib.video_io import to_uint8

PROMPTS = (
    "a red circle bounces over green stripes",
    "a blue star orbits over plain yellow",
    "a green square hides behind a pillar over purple dots",
)
FRAMES, SEED = 80, 0
MAX_BYTES = 400_000
PALE = (222, 222, 222)


def make(prompts: tuple[str, ...] = PROMPTS, num_frames: int = FRAMES, seed: int = SEED) -> tuple[list, list, dict]:
    """Generates the videos.

    Returns:
        Stage 2's and stage 3's, each ``uint8 f h w 3``, and the record of what they were made from.
    """
    import torch

    import st2v_lib
    from st2v_lib.metrics.truth import seams_of

    start, low, high = time.perf_counter(), [], []
    pipe = st2v_lib.load("tiny")
    for prompt in prompts:
        out = pipe(prompt, num_frames=num_frames, seed=seed, progress=False)
        low.append(to_uint8(out.low_res[0]))
        high.append(to_uint8(out.frames[0]))
        print(f"{time.perf_counter() - start:5.0f} s  {prompt}", flush=True)
    chunk, kept = pipe.cfg.chunk_frames, pipe.cfg.cam.num_cond_frames
    record = {
        "prompts": list(prompts), "frames": num_frames, "seed": seed, "fps": pipe.cfg.fps, "weights": weights_mark(),
        "seams": seams_of(num_frames, {"chunk_frames": chunk, "stride": chunk - kept}),
        "sizes": [pipe.cfg.size, pipe.cfg.enhancer.size], "seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__, "device": str(pipe.device), "threads": torch.get_num_threads(),
    }  # fmt: skip
    return low, high, record


def layout(low: list[np.ndarray], high: list[np.ndarray], seams: list[int]) -> np.ndarray:
    """Stage 2 above stage 3 and the line of time below, ``uint8 f h w 3``; an enhanced pixel is a pixel."""
    size = high[0].shape[2], high[0].shape[1]
    enlarged = [np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in v]) for v in low]
    rows = [np.pad(side_by_side(videos, 1), ((0, 0), (0, 4), (0, 0), (0, 0)), constant_values=255)
            for videos in (enlarged, high)]  # fmt: skip
    return np.concatenate([*rows, timeline(len(rows[0]), rows[0].shape[2], seams)], axis=1)


def timeline(num_frames: int, width: int, seams: list[int], height: int = 4) -> np.ndarray:
    """A bar that fills while the video runs, with a gap at each seam: ``uint8 f h w 3``."""
    bar = np.full((num_frames, height, width, 3), PALE, np.uint8)
    for frame in range(num_frames):
        bar[frame, :, : round(width * (frame + 1) / num_frames)] = INK
    for seam in seams:
        at = round(width * seam / num_frames)
        bar[:, :, at : at + 1] = 255
    return bar


def encode(frames: np.ndarray, fps: float, limit: int = MAX_BYTES) -> bytes:
    """Encodes frames as an animated WebP that loops, at the best quality that fits.

    Raises:
        OutputError: it is too large at every quality tried.
    """
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    for quality in (80, 65, 50, 35, 25, 15, 8):
        out = io.BytesIO()
        options = dict(save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
        images[0].save(out, "WEBP", quality=quality, method=4, **options)
        if out.tell() <= limit:
            return out.getvalue()
    raise OutputError(f"the picture has {out.tell()} bytes, more than {limit}: show fewer frames or videos")


def write(folder: Path, frames: np.ndarray, record: dict) -> Path:
    """Writes ``front.webp`` and ``front.json`` into a folder."""
    data = encode(frames, record["fps"])
    try:
        (folder / "front.webp").write_bytes(data)
        (folder / "front.json").write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error
    print(f"{folder / 'front.webp'}: {frames.shape[2]}x{frames.shape[1]} pixels, {len(data) / 1000:.0f} kB")
    return folder / "front.webp"


def stale(folder: Path) -> str:
    """Why the picture is not the shipped weights'; "" if it is theirs."""
    try:
        record = json.loads((folder / "front.json").read_text())
    except (OSError, ValueError):
        return "there is no picture yet"
    if record["weights"] != weights_mark():
        return f"it was made with weights {record['weights']}, shipped are {weights_mark()}"
    return ""


def main() -> int:
    """Makes the picture, or tells whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell whether the shipped weights made it")
    parser.add_argument("--out", type=Path, default=data_dir(), help="folder (default: the kit's data)")
    args = parser.parse_args()
    if args.check:
        why = stale(args.out)
        print(f"{why}: python -m st2v_lib.notebook.front" if why else "made with the shipped weights")
        return int(bool(why))
    args.out.mkdir(parents=True, exist_ok=True)
    low, high, record = make()
    write(args.out, layout(low, high, record["seams"]), record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
