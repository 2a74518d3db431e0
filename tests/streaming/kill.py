"""Kills a streaming process for real (SIGKILL), resumes it, and compares the session with an uninterrupted one.

    python tests/streaming/kill.py --kills 100

Random weights, so nothing but the files is judged. The moment of each kill is random: in a denoising step, in the
middle of a checkpoint, while the video grows. Prints one line a kill; exit code 1 at the first difference.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

FRAMES, SEED = 120, 3
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from processes import started  # noqa: E402


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def command(*arguments: object) -> list[str]:
    """``st2v stream`` with the arguments."""
    return [sys.executable, "-m", "st2v_lib.cli", "stream", *map(str, arguments), "--device", "cpu"]


def run(data: Path, *arguments: object) -> None:
    """Runs ``st2v stream`` to its end, with as many threads as here: another number may round differently."""
    environment = {**os.environ, "ST2V_DATA": str(data), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command(*arguments), env=environment, check=True, stdout=subprocess.DEVNULL)


def stream(*arguments: str) -> int:
    """``st2v stream`` in this process, without a word."""
    from st2v_lib import cli

    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        return cli.main(["stream", *arguments, "--device", "cpu"])


def run_and_kill(data: Path, folder: Path, wait: float, *arguments: object) -> bool:
    """Starts ``st2v stream``, and kills it ``wait`` seconds after its first new checkpoint; whether it was alive."""
    count = lambda: len(list((folder / "checkpoints").glob("0*.json")))  # noqa: E731
    before = count()
    threads, environment = torch.get_num_threads(), {"ST2V_DATA": str(data)}
    process = started(stream, *map(str, arguments), threads=threads, environment=environment)
    while count() == before and process.is_alive():
        time.sleep(0.002)
    time.sleep(wait)
    process.kill()  # SIGKILL
    process.join()
    return process.exitcode < 0


def main() -> int:
    """Kills, resumes and compares."""
    from streaming.micro import PROMPT, write_micro

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest-wait", type=float, default=0.5, help="seconds between a checkpoint and the kill")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, kills, rounds = Path(name), 0, 0
        data = write_micro(root / "data")
        run(data, PROMPT, "--frames", FRAMES, "--seed", SEED, "--session", root / "whole")
        whole = contents(root / "whole")
        while kills < args.kills:
            rounds += 1
            folder = root / f"round{rounds}"
            arguments = [PROMPT, "--frames", FRAMES, "--seed", SEED, "--session", folder]
            alive = True
            while alive and kills < args.kills:
                alive = run_and_kill(data, folder, random.uniform(0, args.longest_wait), *arguments)
                kills += alive
                made = len(list((folder / "checkpoints").glob("0*.json")))
                print(f"kill {kills}, round {rounds}, after {made} checkpoints", flush=True)
                arguments = ["--resume", folder]
            run(data, "--resume", folder)
            if contents(folder) != whole:
                names = [n for n in whole | contents(folder) if whole.get(n) != contents(folder).get(n)]
                print(f"DIFFERENT after {kills} kills: {', '.join(names)}")
                return 1
    print(f"{kills} kills, {rounds} sessions, each byte for byte the uninterrupted one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
