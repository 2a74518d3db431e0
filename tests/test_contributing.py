"""The examples of CONTRIBUTING.md run as they stand there, and the notebook they make keeps the skeleton."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """What the examples define, run in order in one namespace, in a folder of their own."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    folder = tmp_path_factory.mktemp("contributing")
    (folder / "notebooks").mkdir()
    torch.manual_seed(0)
    found = {"__name__": "contributing"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks:
            exec(compile(block, "CONTRIBUTING.md", "exec"), found)
    return found | {"folder": folder}


@torch.no_grad()
def test_the_baseline_is_neutral_and_gives_every_frame_the_same(examples):
    rival = examples["rival"].eval()
    unet = examples["make_unet"](examples["TINY"].unet).eval()
    x, text, cond = torch.randn(1, 8, 16, 8, 8), torch.randn(1, 24, 128), torch.rand(1, 8, 3, 64, 64)
    features = rival(x, 500, text, cond=cond)
    for f in features:
        torch.testing.assert_close(f, f[:, :1].expand_as(f))
    rival.attach(unet)
    torch.testing.assert_close(unet(x, 500, text, cam_features=features), unet(x, 500, text))


def test_the_notebook_keeps_the_skeleton(examples):
    import test_notebooks_lint as lint

    from st2v_lib.notebook import repository

    path = examples["folder"] / "notebooks" / "13_colour.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    (path.parent / "solutions").mkdir()
    nbformat.write(notebook, path.parent / "solutions" / path.name)
    lint.test_it_begins_with_what_why_and_how_long(path)
    lint.test_it_says_what_the_paper_claims_and_where(path)
    lint.test_exercises_have_a_checker_and_a_solution(path)
    lint.test_it_ends_with_summary_differences_and_what_next(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == repository.setup_cell()
    assert lint.prose_per_code(path) >= lint.PROSE
    names: dict = {}
    exec(code[1].source, names)
    exec(code[2].source, names)


def test_a_lesson_that_lacks_a_part_is_told_so(examples, tmp_path):
    """Each part taken away is missed by the check that asks for it."""
    import test_notebooks_lint as lint

    whole = nbformat.read(examples["folder"] / "notebooks" / "13_colour.ipynb", as_version=4)
    parts = {
        "**Takes**": (lint.test_it_begins_with_what_why_and_how_long, "Takes"),
        "(§4)": (lint.test_it_says_what_the_paper_claims_and_where, "name the section"),
        "## Exercise": (lint.test_exercises_have_a_checker_and_a_solution, "## Exercise"),
        "checks.attempt": (lint.test_exercises_have_a_checker_and_a_solution, "checks.attempt"),
        "](solutions/": (lint.test_exercises_have_a_checker_and_a_solution, "a link"),
        "## Summary": (lint.test_it_ends_with_summary_differences_and_what_next, "it ends with"),
    }
    for i, (part, (check, said)) in enumerate(parts.items()):
        lacking = copy.deepcopy(whole)
        for cell in lacking.cells:
            cell.source = cell.source.replace(part, "…")
        path = tmp_path / str(i) / "13_colour.ipynb"
        (path.parent / "solutions").mkdir(parents=True)
        nbformat.write(lacking, path)
        nbformat.write(lacking, path.parent / "solutions" / path.name)
        with pytest.raises(AssertionError, match=said):
            check(path)
