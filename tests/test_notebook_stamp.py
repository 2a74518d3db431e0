"""Committed outputs are of the code beside them and of the shipped weights: each notebook's stamp says so."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from st2v_lib.notebook import repository, stamp

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = repository.notebooks()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix())
def test_outputs_are_of_this_code_and_these_weights(path):
    why = stamp.stale(path)
    assert not why, f"{why}; make notebooks NOTEBOOKS={path.relative_to(ROOT).as_posix()} runs it again"


@pytest.fixture
def made(tmp_path):
    """A notebook that was executed and stamped."""
    cells = [nbformat.v4.new_markdown_cell("# Title\n\n" + repository.badge("notebooks/a.ipynb"))]
    cells += [nbformat.v4.new_code_cell(source) for source in (repository.setup_cell(), "1 + 1")]
    path = tmp_path / "notebooks" / "a.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    stamp.write(path)
    return path


def edit(path, change):
    notebook = json.loads(path.read_text())
    change(notebook)
    path.write_text(json.dumps(notebook))


def test_changed_code_makes_a_notebook_stale(made):
    assert not stamp.stale(made)
    edit(made, lambda notebook: notebook["cells"][2].update(source=["1 + ", "2"]))
    assert stamp.stale(made) == "code cells were changed after they ran"
    stamp.write(made)
    assert not stamp.stale(made)


def test_other_weights_make_a_notebook_stale(made, monkeypatch):
    monkeypatch.setattr(stamp, "weights_mark", lambda: "0" * 12)
    assert stamp.stale(made) == "the outputs are of other weights"


def test_a_notebook_without_a_stamp_is_stale(made):
    edit(made, lambda notebook: notebook["metadata"].pop(stamp.KEY))
    assert stamp.stale(made) == "it carries no stamp"


def test_words_outputs_and_tools_leave_the_stamp_alone(made):
    edit(made, lambda notebook: notebook["cells"][0].update(source="other words"))
    edit(made, lambda notebook: notebook["cells"][2].update(execution_count=7))
    assert not stamp.stale(made)
    nbformat.write(nbformat.read(made, as_version=4), made)  # as nbconvert and JupyterLab do
    assert not stamp.stale(made)
    edit(made, lambda notebook: notebook["cells"][0].update(source=repository.badge("notebooks/b.ipynb")))
    assert repository.rewrite(made, made.parents[1]) and not stamp.stale(made)


def test_make_notebooks_stamps_what_it_executed():
    recipe = (ROOT / "Makefile").read_text().split("\nnotebooks:")[1].split("\n\n")[0]
    assert recipe.index("--execute") < recipe.index("st2v_lib.notebook.stamp")
