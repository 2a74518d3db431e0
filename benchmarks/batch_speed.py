"""Seconds of a streaming chunk for one video, by how many videos are made together.

    python benchmarks/batch_speed.py [--batches 1 2 4 8 16] [--threads 2] [--repeat 3]

Tells which ``--batch`` makes ``st2v evaluate`` fastest on this machine. The best of the repetitions is shown; run it
while nothing else does.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch

from st2v_lib.evaluation.generate import base_chunks, continue_videos
from st2v_lib.loading import load

PROMPT = "a red circle bounces over green stripes"


def seconds(pipe, batch: int, repeat: int) -> float:
    """Seconds of one chunk of one video in a batch of that size, decoding included."""
    prompts, seeds = [PROMPT] * batch, list(range(batch))
    first = base_chunks(pipe, prompts, seeds)
    continue_videos(pipe, prompts, first, seeds, 24)
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        continue_videos(pipe, prompts, first, seeds, 32)  # two chunks
        best = min(best, time.perf_counter() - start)
    return best / 2 / batch


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    pipe = load("tiny", args.device, args.weights)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.device}")
    alone = None
    for batch in args.batches:
        each = seconds(pipe, batch, args.repeat)
        alone = alone or each
        print(f"batch {batch:>3}: {each:.2f} s a chunk and video, {alone / each:.2f} times the first batch's speed")


if __name__ == "__main__":
    main()
