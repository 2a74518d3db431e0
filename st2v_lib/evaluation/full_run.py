"""Every arm, every suite and every drawing by one command; what is done already is skipped.

    python -m st2v_lib.evaluation.full_run --weights data/weights/tiny --processes 2

Says first how much there is to do; ``--plan`` prints the commands and stops. ``--scale 0.1`` makes a tenth of the clips
and of the videos: for a first look, or a machine without a GPU. Result files of another scale are gone on with, arms of
another budget are arms of their own.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from st2v_lib.manifest import weights_dir

CLIPS = 16_000
CURVE = (1_000, 4_000)  # smaller budgets of the learning curve
RIVALS = (
    "concat_cond", "concat_cond_aligned", "add_cond", "add_cond_aligned", "add_cond_primed", "cam_primed",
    "cam_guided", "placed_cam",
)  # fmt: skip
CARRIED = ("cam_1", "cam_2", "cam_4")
UNET_ALONG = ("apm_unet", "apm_unet_null")
SEEDS = (0, 1, 2)  # of training
LONGEST = ("full", "no_apm", "last_frame_clip", "rendering")


def training(weights: Path, arms: Path, scale: float) -> list[list[str]]:
    """The commands that train all arms; APM's start from the CAM of the same seed."""
    found = []

    def add(arm: str, seed: int, clips: int, source: Path) -> Path:
        clips = max(8, round(clips * scale))
        out = arms / f"{arm}-{clips}-{seed}"
        command = ["train", arm, "--from", str(source), "--clips", str(clips), "--seed", str(seed), "--out", str(out)]
        found.append([*command, "--resume"])
        return out

    for seed in SEEDS:
        base = add("cam", seed, CLIPS, weights)
        for arm in RIVALS:
            add(arm, seed, CLIPS, weights)
        for clips in CURVE:
            for arm in ("cam", *RIVALS):
                add(arm, seed, clips, weights)
        for arm in ("apm", "apm_null", *(UNET_ALONG if seed == SEEDS[0] else ())):
            add(arm, seed, CLIPS, base)
    for arm in CARRIED:
        add(arm, 0, CLIPS, weights)
    return found


def evaluation(weights: Path, arms: Path, results: Path | None, split: str, scale: float) -> list[list[str]]:
    """The commands that run all suites on the arms that will be there."""
    trained = {Path(c[c.index("--out") + 1]): c[1] for c in training(weights, arms, scale)}
    memories = [str(p) for p, arm in trained.items() if not arm.startswith("apm")]
    full = [p for p in memories if f"-{max(8, round(CLIPS * scale))}-" in p]
    long_term = [str(p) for p, arm in trained.items() if arm.startswith("apm")]
    at = ["--split", split, "--weights", str(weights), *(["--results", str(results)] if results else [])]

    def suite(name: str, videos: int, *more: str) -> list[str]:
        return ["evaluate", name, *at, "--prompts", str(max(2, math.ceil(videos * scale))), *more]

    return [
        suite("first-chunk", 300),
        suite("long", 64),
        suite("long", 12, "--frames", "1200", "--only", *LONGEST),
        suite("guidance", 12),
        suite("samplers", 12),
        suite("cam", 48, "--arms", *memories),
        suite("cam", 24, "--sprites", "2", "--arms", *full),
        suite("cam", 24, "--speed", "fast", "--arms", *full),
        suite("cam-condition", 24),
        suite("cam-hidden", 48, "--arms", *full),
        suite("apm", 100, "--arms", *long_term),
        suite("apm-anchors", 50),
        suite("blending", 24),
        suite("blending-sweep", 12),
        suite("blending-levels", 12),
    ]


def trained_already(command: list[str]) -> bool:
    """Has this training command reached its clips?"""
    file = Path(command[command.index("--out") + 1]) / "arm.json"
    try:
        return json.loads(file.read_text())["clips"] >= int(command[command.index("--clips") + 1])
    except (OSError, ValueError, KeyError):
        return False


def launcher(processes: int) -> list[str]:
    """How one command is started on that many processes."""
    if processes == 1:
        return [sys.executable, "-m", "st2v_lib.cli"]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *several, "-m", "st2v_lib.cli"]


def perform(commands: Iterable[list[str]], processes: int) -> int:
    """Runs the commands one after the other; the first failing one's code."""
    for command in commands:
        began = time.time()
        print("st2v", shlex.join(command), flush=True)
        code = subprocess.run([*launcher(processes), *command], check=False).returncode
        if code:
            return code
        print(f"  {(time.time() - began) / 60:.1f} min", flush=True)
    return 0


def main() -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=weights_dir("tiny"))
    parser.add_argument("--arms", type=Path, default=Path("runs/arms"))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="print the commands and stop")
    args = parser.parse_args()
    arms = [c for c in training(args.weights, args.arms, args.scale) if not trained_already(c)]
    suites = evaluation(args.weights, args.arms, args.results, args.split, args.scale)
    drawing = ["reproduce", "all", "--split", args.split, *(["--results", str(args.results)] if args.results else [])]
    clips = sum(int(c[c.index("--clips") + 1]) for c in arms)
    print(
        f"{len(arms)} arms to train on {clips} clips in all, then {len(suites)} suites; each says how long it will take"
    )
    if args.plan:
        print("\n".join("st2v " + shlex.join(c) for c in [*arms, *suites, drawing]))
        return 0
    return perform([*arms, *suites], args.processes) or perform([drawing], 1)


if __name__ == "__main__":
    sys.exit(main())
