"""Seconds per 100 frames of each metric, by resolution, and of the one pass that computes them all.

    python benchmarks/metrics_speed.py [--frames 12] [--sizes 64 128 256 720] [--threads 1] [--clock cpu]

Decoding is timed on its own. Metrics that need flow are timed with the flow given, and the flow on its own, because
``measure`` computes it once for all of them. On a busy machine ``--clock cpu`` gives the better picture (ffmpeg, which
is another process, is then not counted).
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from st2v_lib.errors import WeightsError
from st2v_lib.manifest import weights_dir
from st2v_lib.metrics import (
    clip_score,
    drift,
    estimate_flow,
    flicker,
    flow_smoothness,
    high_pass_correlation,
    load_clip,
    mawe,
    measure,
    motion,
    motion_smoothness,
    scene_cuts,
    truth_scores,
    warp_error,
    xt_slice,
)
from st2v_lib.metrics.clip_score import area_preprocess
from st2v_lib.metrics.long_gap import GapCounter
from st2v_lib.video_io import read_video, write_video
from st2v_lib.world.reader import load_reader

PROMPT = "a red circle bounces over green stripes"


def moving_texture(frames: int, side: int) -> np.ndarray:
    """A smooth random picture that moves by 2 px a frame, ``uint8 f h w c``."""
    noise = np.random.default_rng(0).normal(size=(side, side + 2 * frames, 3)).astype(np.float32)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    return np.stack([picture[:, 2 * i : 2 * i + side] for i in range(frames)])


def seconds(work: Callable, frames: int, clock: Callable[[], float]) -> float:
    """Best of two runs, per 100 frames."""
    times = []
    for _ in range(2):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times) * 100 / frames


def long_gap_of(video: np.ndarray) -> None:
    """The long-gap counter on a video of any length."""
    counter = GapCounter()
    for frame in video:
        counter.add(frame)
    counter.result()


def networks(video: np.ndarray) -> dict[str, Callable]:
    """Metrics that need the small CLIP or the reader of the sprite world, where their weights are."""
    try:
        model, tokenizer = load_clip(weights_dir("tiny"))
        reader = load_reader()
    except WeightsError:
        return {}
    return {
        "clip score, small CLIP": lambda: clip_score(video, PROMPT, model, tokenizer, area_preprocess),
        "scores against the truth": lambda: truth_scores(video, PROMPT, reader),
    }


def time_all(frames: int, side: int, folder: Path, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds per 100 frames by name, at side x side pixels."""
    video = moving_texture(frames, side)
    path = write_video(folder / f"{side}.mp4", video)
    flows = estimate_flow(video)
    given = {"flows": flows, "size": None}
    work = {
        "write mp4": lambda: write_video(folder / "again.mp4", video),
        "read mp4": lambda: read_video(path),
        "flow, dis": lambda: estimate_flow(video, "dis"),
        "flow, farneback": lambda: estimate_flow(video, "farneback"),
        "warp error": lambda: warp_error(video, **given),
        "mawe, code": lambda: mawe(video, "code", **given),
        "mawe, paper": lambda: mawe(video, "paper", **given, backward_flows=-flows),
        "motion": lambda: motion(video, **given),
        "motion smoothness": lambda: motion_smoothness(video, **given),
        "high-pass correlation": lambda: high_pass_correlation(video, **given, backward_flows=-flows),
        "flow deviation": lambda: flow_smoothness(video, **given),
        "drift without motion": lambda: drift(video, flow=None),
        "scene cuts": lambda: scene_cuts(video),
        "flicker": lambda: flicker(video),
        "long gap": lambda: long_gap_of(video),
        "x-t slice": lambda: xt_slice(video),
        **networks(video),
        "all, native size": lambda: measure(path, size=None),
        "all, at 720x720": lambda: measure(path),
    }
    return {name: seconds(job, frames, clock) for name, job in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=12, help="length of the test video (default 12)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 720], help="sides in pixels")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and OpenCV (default 1)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what is measured (default wall)")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        columns = [time_all(args.frames, side, Path(folder), clock) for side in args.sizes]
    print(f"{args.clock} seconds per 100 frames; {args.threads} thread(s), {platform.machine()}, {sys.platform}")
    print(f"{'':26}" + "".join(f"{f'{side}x{side}':>12}" for side in args.sizes))
    for name in columns[0]:
        print(f"{name:26}" + "".join(f"{column[name]:12.3f}" for column in columns))


if __name__ == "__main__":
    main()
