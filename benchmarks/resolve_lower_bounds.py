"""Asks pip whether the requirements resolve on Python 3.11 to 3.13, installing nothing. Needs the network.

Three questions for each Python, on the operating system at hand:

* ``newest``: everything in ``pyproject.toml`` (extras included), newest versions;
* ``oldest``: every direct dependency held at its lower bound (for ``==`` and ``.*`` bounds: as written);
* ``pinned``: ``project`` and ``dev`` under ``constraints.txt``.

pip's ``fast-deps`` reads metadata only, where the index allows that, so the gigabytes of a CUDA torch are not fetched.

    python benchmarks/resolve_lower_bounds.py [--python 3.12] [--mode oldest] [--pip-args "..."]
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
MODES = ("newest", "oldest", "pinned")


def requirements(mode: str) -> list[str]:
    """The requirement strings that ``mode`` asks about."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"]
    if mode != "pinned":
        wanted = wanted + extras["metrics"]
    return [line.replace(">=", "==") for line in wanted] if mode == "oldest" else wanted


def resolve(mode: str, python: str, pip_args: list[str]) -> tuple[dict[str, str], str]:
    """What pip would install, name → version, and pip's last error lines (empty when it resolves)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--only-binary=:all:"]
        command += ["--python-version", python, "--target", folder, "--report", str(report), *pip_args]
        command += ["--constraint", str(ROOT / "constraints.txt")] if mode == "pinned" else []
        done = subprocess.run([*command, *requirements(mode)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return {}, "\n".join(errors[-3:] or done.stderr.splitlines()[-3:])
        items = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in items}, ""


def main() -> int:
    """Prints one line for each question; 1 when one of them has no answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", choices=PYTHONS)
    parser.add_argument("--mode", action="append", choices=MODES)
    parser.add_argument("--pip-args", default="", help="more arguments for pip")
    args = parser.parse_args()
    version = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True).stdout
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < (23, 3):
        sys.exit(f"Needs pip 23.3 or newer, whose --dry-run downloads less; this is {version.split(' from')[0]}")
    failed = False
    for python in args.python or PYTHONS:
        for mode in args.mode or MODES:
            start = time.perf_counter()
            found, errors = resolve(mode, python, shlex.split(args.pip_args))
            shown = ", ".join(f"{n} {found[n]}" for n in ("torch", "diffusers", "transformers", "numpy") if n in found)
            answer = f"{len(found)} packages: {shown}" if found else f"DOES NOT RESOLVE\n{errors}"
            print(f"Python {python} {mode}: {answer} ({time.perf_counter() - start:.0f} s)", flush=True)
            failed |= not found
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
