"""Links of the README to a line point to what they name. ``python tests/test_readme_links.py`` sets them right."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[(\w+)\]\((st2v_lib/[\w/]+\.py)(?:#L\d+)?\)")


def line_of(path: str, name: str) -> int:
    """The line where a file defines that function, class, method, field or constant; 1 for a package's name."""
    for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
        if re.match(rf"\s*(def|class) {name}\b|\s*{name}\s*(:[^=]+)?=", line):
            return number
    assert path.endswith("__init__.py"), f"{path} defines no {name!r}"
    return 1


def relink(text: str) -> str:
    """The text with the lines as they are now."""
    return LINK.sub(lambda m: f"[{m[1]}]({m[2]}#L{line_of(m[2], m[1])})", text)


def test_links_point_to_what_they_name():
    text = (ROOT / "README.md").read_text()
    assert len(LINK.findall(text)) > 30
    assert relink(text) == text, "python tests/test_readme_links.py sets the lines right"


DIFFERENCES = (  # between the paper and its code that are known, and choices of this kit's own; in short
    "guidance", "null anchor", "CAM's pixel encoder", "β₀", "law of the cut", "what is blended", "eq. 8", "upscaling",
    "MAWE", "frames per second", "chunk and overlap", "seed, steps, guidance", "α of APM", "weights that are kept",
    "training timesteps", "anchor in training", "learning rate and batch",
)  # fmt: skip


def test_table_of_differences_is_complete():
    table = (ROOT / "README.md").read_text().split("## Where this differs")[1]
    lines = [line for line in table.splitlines() if line.startswith("| ") and "](st2v_lib" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == 6 and all(row) and LINK.fullmatch(row[4]) for row in rows)
    for name in DIFFERENCES:
        assert any(name in row[0] for row in rows), f"no row for {name}"
    for row in rows:
        path = LINK.fullmatch(row[4])[2]
        for constant in re.findall(r"`([A-Z_]{2,})[ `]", row[5]):
            assert re.search(rf"^{constant}\b.* = ", (ROOT / path).read_text(), re.M), f"{path} has no {constant}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(relink(readme.read_text()))
    sys.exit(0)
