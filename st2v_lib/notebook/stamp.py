"""A stamp in a notebook's metadata: of which code and of which weights its committed outputs are.

    python -m st2v_lib.notebook.stamp notebooks/06_metrics.ipynb

writes it into a notebook that was just executed; ``make notebooks`` does so after each. Text may change without it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from st2v_lib.manifest import weights_mark

KEY = "st2v"  # in the notebook's metadata


def stamp(notebook: dict) -> dict[str, str]:
    """What the stamp of a notebook would be now.

    Args:
        notebook: a notebook file's content.

    Returns:
        ``sources``, twelve hex digits that change when a code cell does, and ``weights``, those of the shipped weights.
    """
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return {"sources": hashlib.sha256(json.dumps(code).encode()).hexdigest()[:12], "weights": weights_mark()}


def stale(path: Path) -> str:
    """Why a notebook's outputs are not those of its code and of the weights that lie here; empty when they are."""
    notebook = json.loads(path.read_text())
    found, now = notebook["metadata"].get(KEY, {}), stamp(notebook)
    why = {"sources": "code cells were changed after they ran", "weights": "the outputs are of other weights"}
    wrong = [text for name, text in why.items() if found.get(name) != now[name]]
    return "; ".join(wrong) if found else "it carries no stamp"


def write(path: Path) -> None:
    """Stamps a notebook: its outputs are those of its present code and weights."""
    notebook = json.loads(path.read_text())
    notebook["metadata"][KEY] = stamp(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(Path(name))
