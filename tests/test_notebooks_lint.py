"""The skeleton that all notebooks share: what a reader can count on in each of them.

``python tests/test_notebooks_lint.py`` prints how many cells of prose each notebook has for a cell of code.
"""

from __future__ import annotations

import json
import re
import statistics
from functools import cache
from pathlib import Path

import pytest

from st2v_lib.notebook import repository

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = repository.notebooks()
TAGS = {
    "nbval-check-output", "nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception",
    "hide-input",
}  # fmt: skip
MAX_BYTES, MAX_LINES, MEDIAN_LINES, PROSE = 500_000, 40, 10, 1.7
PLACE = re.compile(r"§|\b(?:Sec|eq|Fig|Tab)\. ?\d")  # in the paper
ABSOLUTE = re.compile(r"(?<![\w.:/~])/(home|Users|root|work|tmp|mnt|opt|var|content|usr)/|[A-Z]:\\\\")
MEDIA = {"image/png", "image/gif", "text/plain", "text/html"}

pytestmark = [
    pytest.mark.skipif(not NOTEBOOKS, reason="notebooks/ holds no notebook yet"),
    pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix()),
]


@cache
def load(path: Path) -> dict:
    return json.loads(path.read_text())


def source(cell: dict) -> str:
    return "".join(cell["source"])


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in load(path)["cells"] if cell["cell_type"] == kind and source(cell).strip()]


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def is_solution(path: Path) -> bool:
    return path.parent.name == "solutions"


def lessons(path: Path) -> list[str]:
    """The prose cells of a lesson; a solution has answers only, and is no lesson."""
    if is_solution(path):
        pytest.skip("a solution")
    return [source(cell) for cell in cells(path, "markdown")]


def prose_per_code(path: Path) -> float:
    return len(cells(path, "markdown")) / len(cells(path, "code"))


def test_title_and_badge_come_first(path):
    first = load(path)["cells"][0]
    place = path.relative_to(ROOT).as_posix()
    assert first["cell_type"] == "markdown" and source(first).startswith("# "), "begin with a title"
    assert repository.badge(place) in source(first), "run python -m st2v_lib.notebook.repository"


def test_first_code_cell_is_the_shared_one(path):
    first = cells(path, "code")[0]
    assert source(first).rstrip() == repository.setup_cell(), "run python -m st2v_lib.notebook.repository"
    assert "nbval-ignore-output" in first["metadata"].get("tags", [])


def test_format_and_kernel(path):
    notebook = load(path)
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"], "clear saved widget state"
    for cell in notebook["cells"]:
        assert set(cell["metadata"].get("tags", [])) <= TAGS, cell["metadata"]["tags"]


def test_no_absolute_paths(path):
    found = ABSOLUTE.search(path.read_text())
    assert not found, f"a path of one machine: {path.read_text()[max(0, found.start() - 60) : found.end() + 60]!r}"


def test_code_is_short_and_explained(path):
    code, prose = cells(path, "code"), cells(path, "markdown")
    lines = [len([line for line in source(cell).splitlines() if line.strip()]) for cell in code]
    assert max(lines) <= MAX_LINES and statistics.median(lines) <= MEDIAN_LINES, lines
    least = 1.0 if is_solution(path) else PROSE
    assert prose_per_code(path) >= least, f"{len(prose)} markdown cells for {len(code)} code cells"


def test_it_begins_with_what_why_and_how_long(path):
    first = lessons(path)[0]
    places = [first.find(word) for word in ("**You will learn**", "**Needs** ", "**Takes** ")]
    assert -1 not in places and places == sorted(places), "title, badge, You will learn, Needs, Takes"
    assert re.search(r"minute|hour", first[places[2] :]), "Takes says the minutes"


def test_it_says_what_the_paper_claims_and_where(path):
    claims = [cell for cell in lessons(path) if cell.startswith("## What the paper ")]
    assert claims, "a cell that begins with '## What the paper claims (§…)'"
    assert PLACE.search(claims[0]), "name the section, equation, figure or table"


def test_exercises_have_a_checker_and_a_solution(path):
    prose = lessons(path)
    assert any(re.match(r"## (\d+ · )?Exercise", cell) for cell in prose), "## Exercise, or ## Exercises"
    assert any("checks.attempt(" in source(cell) for cell in cells(path, "code")), "checks.attempt(checker, function)"
    assert f"](solutions/{path.name})" in "".join(prose), f"a link to solutions/{path.name}"
    assert (path.parent / "solutions" / path.name).is_file()


def test_it_ends_with_summary_differences_and_what_next(path):
    ends = ("## Summary", "## What differs from the paper", "## What next")
    last = [cell.splitlines()[0] for cell in lessons(path)[-3:]]
    assert all(line.startswith(end) for line, end in zip(last, ends)), f"it ends with {last}"


def test_every_cell_was_run_in_order_without_error(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    for cell in code:
        if "raises-exception" not in cell["metadata"].get("tags", []):
            assert not [o for o in cell["outputs"] if o["output_type"] == "error"], source(cell)


def test_outputs_are_small_and_seen_everywhere(path):
    assert path.stat().st_size <= MAX_BYTES, f"{path.stat().st_size} bytes"
    for output in outputs(path):
        if output["output_type"] in ("display_data", "execute_result"):
            kinds = set(output["data"])
            assert kinds <= MEDIA | {"application/vnd.jupyter.widget-view+json"}, kinds
            page = "".join(output["data"].get("text/html", ""))
            assert set(re.findall(r"data:([\w/+-]+)", page)) <= {"image/gif", "image/png"}
            assert not re.search(r"<(script|video|iframe)|https?://", page), "GitHub shows none of these"


def test_no_warnings_in_the_outputs(path):
    assert not [o for o in outputs(path) if o.get("name") == "stderr"], "a warning or a progress bar was saved"


if __name__ == "__main__":
    for file in NOTEBOOKS:
        print(f"{prose_per_code(file):.2f}  {file.relative_to(ROOT / 'notebooks').as_posix()}")
