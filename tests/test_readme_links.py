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


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(relink(readme.read_text()))
    sys.exit(0)
