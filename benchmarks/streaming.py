"""What streaming promises, measured: delay of the first frame, frames per second, memory by length, checkpoints.

    python benchmarks/streaming.py [--lengths 240 1200] [--frames 80] [--threads 2] [--weights DIR] [--out FILE.json]

Each length runs in a process of its own, which prints its peak memory; there two steps a chunk and no guidance are
used, because memory does not depend on them (``--memory-steps``). Speed does not depend on what the weights have
learnt, so random ones are used where there are none. Times are valid on an idle machine only.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from st2v_lib import session as session_module
from st2v_lib.config import preset
from st2v_lib.errors import WeightsError
from st2v_lib.loading import load
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.session import Session

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generate_speed import random_pipeline  # noqa: E402

PROMPT = "a red circle bounces over green stripes"
MEMORY_GROWTH, CHECKPOINT_SHARE = 0.02, 0.03  # what is promised


def pipeline(weights: Path | None) -> tuple[StreamingT2VPipeline, str]:
    """The shipped weights, or random ones; and which."""
    try:
        return load("tiny", "cpu", weights), "trained"
    except WeightsError:
        return random_pipeline(preset("tiny")), "random"


def peak_mb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def memory_of(pipe: StreamingT2VPipeline, frames: int, steps: int, enhance: bool) -> float:
    """Peak memory after a session of that many frames."""
    with tempfile.TemporaryDirectory() as folder:
        options = dict(num_inference_steps=steps, guidance_scale=1.0)
        for _ in Session.create(Path(folder) / "s", pipe, PROMPT, frames, enhance=enhance, **options).run():
            pass
    return peak_mb()


def first_frame(pipe: StreamingT2VPipeline, frames: int | None) -> float:
    """Seconds from the call to the first frames."""
    start = time.perf_counter()
    next(pipe.stream(PROMPT, frames, progress=False))
    return time.perf_counter() - start


def rate(blocks: Any, frames: int) -> float:
    """Frames per second of an iterator over blocks of frames."""
    start = time.perf_counter()
    made = sum(block.shape[1] for block in blocks)
    assert made == frames, (made, frames)
    return frames / (time.perf_counter() - start)


def checkpoint_cost(pipe: StreamingT2VPipeline, frames: int, enhance: bool) -> dict[str, float]:
    """Seconds of a session, and those of them that go into checkpoints, the mp4 and the drift watch."""
    spent = {"commit": 0.0, "mp4": 0.0, "drift watch": 0.0}

    def timed(name: str, action: Callable) -> Callable:
        @functools.wraps(action)
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return action(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    kept = Session._commit, session_module.encode_fragment, Session._look
    Session._commit = timed("commit", kept[0])
    session_module.encode_fragment = timed("mp4", kept[1])
    Session._look = timed("drift watch", kept[2])
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for _ in Session.create(Path(folder) / "s", pipe, PROMPT, frames, enhance=enhance).run():
                pass
            total = time.perf_counter() - start
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    finally:
        Session._commit, session_module.encode_fragment, Session._look = kept
    checkpoints = spent["commit"] - spent["mp4"] - spent["drift watch"]
    return {
        "seconds": total, "checkpoints": checkpoints, "share": checkpoints / total, "mp4": spent["mp4"],
        "drift_watch": spent["drift watch"], "bytes_a_frame": size / frames,
    }  # fmt: skip


def main() -> int:
    """Measures and prints; exit code 1 when a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[240, 1200])
    parser.add_argument("--frames", type=int, default=80, help="length for speed and cost of checkpoints")
    parser.add_argument("--memory-steps", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-enhance", action="store_true", help="stages 1 and 2 alone")
    parser.add_argument("--weights", type=Path, help="folder of a pipeline (default: the shipped weights)")
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    enhance = not args.no_enhance
    pipe, kind = pipeline(args.weights)
    if args.child:
        print(memory_of(pipe, args.child, args.memory_steps, enhance))
        return 0
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__,
        "weights": kind, "command": "python benchmarks/streaming.py " + " ".join(sys.argv[1:]),
    }  # fmt: skip
    print(f"{found['machine']}, torch {found['torch']}, {kind} weights")
    found["first_frame"] = {str(n): first_frame(pipe, n) for n in (24, *args.lengths, None)}
    for length, seconds in found["first_frame"].items():
        print(f"first frames, {length if length != 'None' else 'no'} frames asked for {seconds:>10.2f} s")
    run, n = functools.partial(pipe.stream, PROMPT, args.frames, progress=False), args.frames
    found["frames_per_second"] = {"stages 1, 2": rate(run(), n)}
    for batch in (1, 2, 4) if enhance else ():
        name = f"all stages, {batch} chunks a call"
        blocks = pipe.enhance(run(), PROMPT, progress=False, num_frames=n, chunk_batch=batch)
        found["frames_per_second"][name] = rate(blocks, n)
    for name, value in found["frames_per_second"].items():
        print(f"{name:<32} {value:>8.2f} frames/s")
    cost = found["checkpoint_cost"] = checkpoint_cost(pipe, n, enhance)
    print(f"checkpoints {cost['checkpoints']:.2f} of {cost['seconds']:.1f} s: {cost['share']:.1%}", end="")
    print(
        f"; the mp4 {cost['mp4']:.2f} s, drift watch {cost['drift_watch']:.2f} s; {cost['bytes_a_frame']:.0f} B/frame"
    )
    kept = cost["share"] <= CHECKPOINT_SHARE
    command = [sys.executable, __file__, "--memory-steps", str(args.memory_steps)]
    command += ["--threads", str(torch.get_num_threads())] + (["--no-enhance"] if args.no_enhance else [])
    command += ["--weights", str(args.weights)] if args.weights else []
    found["peak_mb"] = {}
    for length in args.lengths:
        done = subprocess.run([*command, "--child", str(length)], check=True, capture_output=True, text=True)
        found["peak_mb"][str(length)] = float(done.stdout.splitlines()[-1])
        print(f"peak memory, {length:>5} frames {found['peak_mb'][str(length)]:>10.0f} MB")
    values = list(found["peak_mb"].values())
    growth = found["memory_growth"] = values[-1] / values[0] - 1
    print(f"growth {growth:+.1%} (promised: at most {MEMORY_GROWTH:.0%})")
    kept &= growth <= MEMORY_GROWTH
    print("all promises kept" if kept else "A PROMISE IS NOT KEPT")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
