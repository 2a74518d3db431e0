"""The first cell's work: install what a borrowed environment lacks, and say what runs here.

Only the standard library is imported at the top: in Colab this file is read before the packages are complete.
``python benchmarks/colab_rehearsal.py`` plays it all through in a fresh environment.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

KEPT = ("torch", "numpy")  # the hosted environment's own builds, never replaced
PAGE = "ipywidgets"  # fits the page that shows the widgets (in Colab: version 7), so any version of it is left
SERVER = "jupyterlab"  # whoever runs this cell has a Jupyter; another would replace parts of Colab's own
HELD = (*KEPT, PAGE, "ipython", "ipykernel", "tornado")  # what pip must not move while it installs the rest
SHOWN = ("torch", "diffusers", "transformers", "numpy")


def requirements(pyproject: Path | None = None) -> dict[str, str]:
    """The library's direct dependencies, name → requirement, from ``pyproject.toml``; {} if that is not beside it."""
    path = pyproject or Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not path.is_file():
        return {}
    lines = tomllib.loads(path.read_text())["project"]["dependencies"]
    return {re.match(r"[\w.-]+", line)[0]: line for line in lines}


def missing() -> list[str]:
    """Requirements of which no version is installed, those of :data:`KEPT` and the Jupyter server aside."""
    return [line for name, line in requirements().items() if name not in (*KEPT, SERVER) and version(name) is None]


def too_old() -> dict[str, str]:
    """Requirements, name → requirement, of which an older version than asked for is installed."""
    return {name: line for name, line in requirements().items() if _older(version(name), line.split(">=")[-1])}


def install_missing() -> list[str]:
    """Installs the dependencies that are absent or too old, with torch, numpy and the notebook's own parts held.

    What is too old but held, or imported already, is left as it is, with a line that says so.

    Returns:
        What was installed; an empty list in a complete environment.

    Raises:
        RuntimeError: torch or numpy is absent, or pip failed; its last lines are in the message.
    """
    old = too_old()
    left = [name for name in old if name in HELD or name.replace("-", "_") in sys.modules]
    wanted = missing() + [line for name, line in old.items() if name not in left]
    if left:
        print("older than asked for, and left:", ", ".join(f"{name} {version(name)}" for name in left))
    if not wanted:
        return []
    if absent := [name for name in KEPT if version(name) is None]:
        raise RuntimeError(f"{' and '.join(absent)} must be there first; `make setup` makes a complete environment")
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "held.txt"
        held.write_text("".join(f"{name}=={version(name)}\n" for name in HELD if version(name)))
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(held), *wanted]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError("pip could not install what is missing:\n" + "\n".join(result.stderr.splitlines()[-5:]))
    importlib.invalidate_caches()
    print("installed", ", ".join(wanted))
    return wanted


def _older(installed: str | None, bound: str) -> bool:
    """Whether a version comes before another, by the numbers of both: 2.0.2 before 2.1, 2.11.0+cu126 not before 2.6."""
    parts = [[int(n) for n in re.findall(r"\d+", v.split("+")[0])] for v in (installed or bound, bound)]
    return parts[0] < parts[1]


def version(package: str) -> str | None:
    """The installed version of a package, None without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> None:
    """Prints versions, device, memory and which presets can run, five lines."""
    from st2v_lib import __version__
    from st2v_lib.doctor import inspect_machine

    found = inspect_machine()
    memory, best = found["memory_gb"], found["devices"][-1]
    packages = " · ".join(f"{name} {version(name) or 'MISSING'}" for name in SHOWN)
    print(f"st2v_lib {__version__} · Python {platform.python_version()} · {packages}")
    card = f", {best['free_gb']:.1f} of {best['total_gb']:.1f} GB free" if "total_gb" in best else ""
    print(f"device   {best['name']} ({best['detail']}{card})")
    print(f"memory   {memory['free']:.1f} of {memory['total']:.1f} GB free")
    for name, preset in found["presets"].items():
        print(f"{name:<11}{'runs here' if preset['runs'] else 'not here'}: {preset['why']}")
