"""The examples of CONTRIBUTING.md run as they stand there, and the notebook they make keeps the skeleton."""

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
    from st2v_lib.notebook import repository

    notebook = nbformat.read(examples["folder"] / "notebooks" / "13_colour.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source == repository.setup_cell()
    assert len(notebook.cells) - len(code) >= 1.5 * len(code)
    exec(code[1].source, {})
