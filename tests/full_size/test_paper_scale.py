"""Rows of the paper's tables: what is estimated first, what is never run, and a row from end to end in miniature."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from st2v_lib import cli
from st2v_lib.evaluation import paper_scale
from st2v_lib.loading import load


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle bounces over green stripes\n\n  a blue square drifts over plain grey \n")
    return path


def test_the_command_offers_every_row():
    assert tuple(cli.PAPER_ROWS) == tuple(paper_scale.ROWS)


def test_hours_and_disk_come_first(prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paper_scale, "load", lambda *_: pytest.fail("loaded"))
    assert cli.main(["paper", "table1", "--prompts", str(prompts), "--estimate", "--out", str(tmp_path / "v")]) == 0
    shown = capsys.readouterr().out
    assert "2 videos of 240 frames" in shown and "about 0.9 GPU-hours" in shown and "not measured" in shown
    assert paper_scale.gpu_hours(paper_scale.ROWS["table1"], 50, 240) == pytest.approx(50 * 1610 / 3600)
    assert cli.main(["paper", "table1"]) == 2 and "appendix" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert cli.main(["paper", "table1", "--prompts", str(tmp_path / "empty.txt")]) == 2


def test_what_is_not_run_says_so(tmp_path, capsys):
    assert cli.main(["paper", "add-cond"]) == 2
    assert "nobody released" in capsys.readouterr().err
    assert cli.main(["paper", "table", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(paper_scale.ROWS)
    assert sum("| not run |" in line for line in lines) == 6 and sum("nobody released" in line for line in lines) == 2


@pytest.mark.parametrize("row", ["low-resolution", "blending-B"])
def test_a_row_in_miniature(prompts, tmp_path, random_weights, quick_config, monkeypatch, capsys, row):
    """The tiny model with random weights: files, means, and a table that does not take them for the full size's."""

    def loaded(preset, device):
        pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
        pipe.cfg = quick_config
        return pipe

    monkeypatch.setattr(paper_scale, "load", loaded)
    small = lambda video, prompt, clip: {  # noqa: E731
        "flow_deviation": type("R", (), {"value": float(np.mean(video))})}  # fmt: skip
    monkeypatch.setattr(paper_scale, "measure", small)
    argv = ["paper", row, "--prompts", str(prompts), "--frames", "26", "--preset", "tiny", "--device", "cpu"]
    argv += ["--out", str(tmp_path / "v"), "--results", str(tmp_path / "r")]
    torch.manual_seed(0)
    assert cli.main(argv) == 0
    assert "not comparable" in capsys.readouterr().out
    found = json.loads((tmp_path / "r" / f"{row}.json").read_text())
    assert found["prompts"] == 2 and len(found["videos"]) == 2
    mean = np.mean([v["flow_deviation"] for v in found["videos"]])
    assert found["mean"]["flow_deviation"] == pytest.approx(mean, abs=0.01), "result files keep a few digits"
    stamps = [p.stat().st_mtime_ns for p in sorted((tmp_path / "v" / row).glob("*.mp4"))]
    assert len(stamps) == 2 and cli.main(argv) == 0
    assert stamps == [p.stat().st_mtime_ns for p in sorted((tmp_path / "v" / row).glob("*.mp4"))], "made once"
