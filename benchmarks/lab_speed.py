"""How long the ablation lab takes to answer: both arms of its default state, measured as the panel runs them.

    python benchmarks/lab_speed.py [--repeat 3] [--threads 2] [--all]

A reader waits for both videos and their scores; the budget is 15 seconds on two cores. The networks are loaded before,
and the quickest of the repetitions is shown. ``load`` is what the machine was busy with before the first of them: a
number made beside other work says so.
"""

from __future__ import annotations

import argparse
import os
import platform

import torch

from st2v_lib.notebook.lab_panel import PATIENCE
from st2v_lib.notebook.lab_run import RECORDED, load_bench, run


def main() -> None:
    """Measures and prints a line for each recorded state of the lab, the default one first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    parser.add_argument("--all", action="store_true", help="all recorded states, not the default one alone")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    busy = f"beside other work (load {load:.1f})" if load > 0.5 else "idle before"
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    print(f"{cores}, {torch.get_num_threads()} torch threads, torch {torch.__version__}, {busy}")
    bench = load_bench()
    for name, state in RECORDED.items() if args.all else [("memories", RECORDED["memories"])]:
        seconds = min(run(state, bench).seconds for _ in range(args.repeat))
        what = f"{name}, two arms of {state.frames} frames, stage {state.stage}"
        print(f"{what:<40} {seconds:>6.1f} s  (budget {PATIENCE})", flush=True)


if __name__ == "__main__":
    main()
