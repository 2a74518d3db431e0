"""Where the repository lives: the one setting behind every badge and the first code cell of every notebook.

    python -m st2v_lib.notebook.repository

writes badges and first code cells into all notebooks again, and the badge into the README, after the address or the
version has changed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from st2v_lib import __version__

REPOSITORY = "streamingt2v-kit/streamingt2v-kit"  # owner/name on GitHub
TAG = f"v{__version__}"  # what badges open and Colab clones: a release, not a moving branch

_ROOT = Path(__file__).resolve().parents[2]
_BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)")
_SETUP = """\
# The same in every notebook: find the library (Colab: clone it), then say what this machine can show.
import importlib.util, os, subprocess, sys
from pathlib import Path

home = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "st2v_lib").is_dir()), Path("{name}"))
if "COLAB_RELEASE_TAG" in os.environ and not home.is_dir():
    clone = ["git", "-c", "advice.detachedHead=false", "clone", "-q", "--depth=1", "--branch={tag}", "{url}", home]
    subprocess.run(clone, check=True)
if importlib.util.find_spec("st2v_lib") is None:
    sys.path.insert(0, str(home.resolve()))
from st2v_lib.notebook.setup import environment, install_missing

install_missing()  # does nothing in a complete environment, and never touches torch or numpy
environment()
"""


def url() -> str:
    """The repository's address."""
    return f"https://github.com/{REPOSITORY}"


def badge(path: str) -> str:
    """The "Open in Colab" badge, Markdown, of a notebook.

    Args:
        path: the notebook's place in the repository, ``"notebooks/06_metrics.ipynb"``.
    """
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})](https://colab.research.google.com/github/{REPOSITORY}/blob/{TAG}/{path})"


def setup_cell() -> str:
    """Source of the first code cell, the same in all notebooks."""
    return _SETUP.format(name=REPOSITORY.split("/")[1], tag=TAG, url=url()).rstrip("\n")


def notebooks(folder: Path | None = None) -> list[Path]:
    """All notebooks of the repository, solutions included."""
    found = (folder or _ROOT / "notebooks").rglob("*.ipynb")
    return sorted(p for p in found if not any(part.startswith(".") for part in p.parts))


def rewrite(path: Path, root: Path | None = None) -> bool:
    """Puts the present badge and first code cell into one notebook.

    Args:
        path: the notebook; it has a badge in its first cell and a code cell.
        root: the repository, if it is not this one.

    Returns:
        Whether the file changed.

    Raises:
        ValueError: there is no badge or no code cell to replace.
    """
    text = path.read_text()
    notebook = json.loads(text)
    title = notebook["cells"][0]
    found, count = _BADGE.subn(badge(path.relative_to(root or _ROOT).as_posix()), "".join(title["source"]))
    code = next((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), None)
    if not count or code is None:
        raise ValueError(f"{path.name} has no Colab badge in its first cell, or no code cell")
    title["source"] = found.splitlines(keepends=True)
    code["source"] = setup_cell().splitlines(keepends=True)
    new = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if new != text:
        path.write_text(new)
    return new != text


def rewrite_readme(path: Path) -> bool:
    """Puts the present badge, that of the first notebook, into the README; whether it changed."""
    text = path.read_text()
    new = _BADGE.sub(badge("notebooks/00_start_here.ipynb"), text)
    if new != text:
        path.write_text(new)
    return new != text


if __name__ == "__main__":
    for file in notebooks():
        print("changed  " if rewrite(file) else "unchanged", file.name)
    print("changed  " if rewrite_readme(_ROOT / "README.md") else "unchanged", "README.md")
