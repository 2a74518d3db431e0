"""Rehearses Colab: the badge's notebook, in a fresh environment, from an empty folder. Needs the network, for pip.

    python benchmarks/colab_rehearsal.py [--cells 5] [--preinstalled "torch numpy==2.0.2 ipywidgets==7.7.1"]

What stands in for Colab: a new virtual environment with torch, numpy and a kernel and nothing else (or what
``--preinstalled`` names), the variable by which the first cell knows Colab, and a bare clone of this repository, tagged
as the release, to which git redirects the address of the badge. The notebook is read from the tag, as Colab does. Only
what is committed takes part. What a rehearsal cannot show: Colab's page, its own Python and its card.

Checked: versions of torch and numpy stay, the library comes from the clone, no cell fails or warns, and after a restart
of the kernel the first cell installs nothing. Exit status 1 if one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from st2v_lib.notebook import repository  # noqa: E402
from st2v_lib.notebook.setup import KEPT  # noqa: E402

NOTEBOOK = "notebooks/00_start_here.ipynb"
REPORT = """\
import json, sys
import numpy, torch, st2v_lib
from st2v_lib.manifest import data_dir
print(json.dumps({"library": st2v_lib.__file__, "data": str(data_dir()), "python": sys.prefix,
                  "torch": torch.__version__, "numpy": numpy.__version__}))
"""


def tagged_remote(folder: Path) -> Path:
    """A bare clone of this repository whose HEAD carries the release's tag."""
    remote = folder / "remote.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(ROOT), str(remote)], check=True)
    subprocess.run(["git", "-C", str(remote), "tag", "-f", repository.TAG], check=True, capture_output=True)
    return remote


def fresh_environment(folder: Path, preinstalled: str, pip_args: str) -> Path:
    """A new virtual environment with the named packages; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = [*shlex.split(pip_args), *shlex.split(preinstalled), "ipykernel"]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    return python


def kernel_for(python: Path, remote: Path, folder: Path) -> None:
    """Registers a kernel "python3" that believes to be in Colab and finds the badge's address at ``remote``."""
    place = folder / "jupyter" / "kernels" / "python3"
    place.mkdir(parents=True)
    environment = {
        "COLAB_RELEASE_TAG": "rehearsal", "PYTHONNOUSERSITE": "1", "PYTHONPATH": "",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{remote.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository.url(),
    }  # fmt: skip
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (place / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "rehearsal", "env": environment}))
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")


def packages(python: Path) -> dict[str, str]:
    """Name → version of everything installed beside that Python."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    return {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}


def play(sources: list[str], folder: Path) -> list[dict[str, str]]:
    """Runs cells in a new kernel, from the empty folder; returns stdout and stderr of each. A failing cell raises."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    (folder / "content").mkdir(exist_ok=True)
    nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder / "content")}}
    ).execute()
    streams = ("stdout", "stderr")
    said = lambda cell, name: "".join(o.text for o in cell.outputs if o.get("name") == name)  # noqa: E731
    return [{name: said(cell, name) for name in streams} for cell in notebook.cells]


def rehearse(folder: Path, python: Path, place: str, cells: int | None) -> bool:
    """Plays the notebook and prints what holds; whether all of it does."""
    remote = tagged_remote(folder)
    kernel_for(python, remote, folder)
    shown = ["git", "-C", str(remote), "show", f"{repository.TAG}:{place}"]
    notebook = nbformat.reads(subprocess.run(shown, check=True, capture_output=True, text=True).stdout, as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"][:cells]
    before, start = packages(python), time.perf_counter()
    printed = play([*sources, REPORT], folder)
    seconds = time.perf_counter() - start
    print(f"\n{place} at {repository.TAG}: {len(sources)} cells in {seconds:.0f} s\n\n{printed[0]['stdout']}")
    again = play([sources[0], REPORT], folder)  # a new kernel: what a restart of the session gives
    after, report, second = packages(python), json.loads(printed[-1]["stdout"]), json.loads(again[-1]["stdout"])
    clone = (folder / "content" / repository.REPOSITORY.split("/")[1]).resolve()
    moved = {n: f"{v} -> {after.get(n)}" for n, v in before.items() if after.get(n) != v}
    print(f"packages: {len(before)} before, {len(after)} after; of those before changed: {moved or 'none'}\n")
    quiet = "installed" not in again[0]["stdout"]
    warnings = "".join(cell["stderr"] for cell in printed)
    public = lambda version: version.split("+")[0]  # a build's own part is told by some and not by others  # noqa: E731
    holds = {
        f"{name} untouched ({before[name]})": before[name] == after[name]
        and public(before[name]) == public(report[name])
        for name in KEPT
    }
    holds |= {
        "the kernel is the fresh environment's": Path(report["python"]).resolve() == (folder / "env").resolve(),
        f"the library comes from the clone ({report['library']})": Path(report["library"]).is_relative_to(clone),
        "weights come from the clone": Path(report["data"]).is_relative_to(clone),
        "after a restart: nothing installed, the same library": quiet and second == report,
        f"no warnings {warnings[:300]}": not warnings,
    }
    for what, fine in holds.items():
        print("PASS" if fine else "FAIL", what)
    return all(holds.values())


def main() -> int:
    """Rehearses in a temporary folder, or in an empty one that is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebook", default=NOTEBOOK, help="its place in the repository (default: %(default)s)")
    parser.add_argument("--cells", type=int, help="code cells of the notebook to run; default: all")
    parser.add_argument("--preinstalled", default="torch numpy", help="what the fresh environment has, pip's notation")
    parser.add_argument("--pip-args", default="", help="more arguments for pip while that is installed")
    parser.add_argument("--keep", metavar="DIR", help="a new folder for environment, remote and clone")
    args = parser.parse_args()
    changed = subprocess.run(["git", "status", "--short", "-uno"], cwd=ROOT, capture_output=True, text=True).stdout
    if changed:
        print(f"{len(changed.splitlines())} changed files are not committed and take no part", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"{folder} is not empty; a rehearsal needs a folder of its own")
        start = time.perf_counter()
        python = fresh_environment(folder, args.preinstalled, args.pip_args)
        print(f"fresh environment in {time.perf_counter() - start:.0f} s: {args.preinstalled}", flush=True)
        return 0 if rehearse(folder, python, args.notebook, args.cells) else 1


if __name__ == "__main__":
    sys.exit(main())
