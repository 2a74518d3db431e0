"""Rows of the paper's tables: what is estimated first, what is never run, and a row from end to end in miniature."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from st2v_lib import cli
from st2v_lib.evaluation import paper_scale
from st2v_lib.evaluation.paper import STABILITY
from st2v_lib.loading import load
from st2v_lib.metrics.base import MetricResult
from st2v_lib.metrics.clip_score import load_clip
from st2v_lib.metrics.table import measure
from st2v_lib.video_io import read_video


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
    assert "flow: DIS in place of the paper's RAFT-large" in shown
    raft = ["paper", "table1", "--prompts", str(prompts), "--estimate", "--out", str(tmp_path / "v"), "--flow", "raft"]
    assert cli.main(raft) == 0 and "in place of" not in capsys.readouterr().out
    assert paper_scale.gpu_hours(paper_scale.ROWS["table1"], 50, 240) == pytest.approx(50 * 1610 / 3600)
    assert cli.main(["paper", "table1"]) == 2 and "appendix" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert cli.main(["paper", "table1", "--prompts", str(tmp_path / "empty.txt")]) == 2


def test_what_is_not_run_says_so(tmp_path, capsys):
    assert cli.main(["paper", "add-cond"]) == 2
    assert "nobody released" in capsys.readouterr().err
    assert cli.main(["paper", "table", "--results", str(tmp_path)]) == 0
    *lines, empty, note = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(paper_scale.ROWS) + len(STABILITY) and not empty
    assert sum("| not run |" in line for line in lines) == 12 and sum("nobody released" in line for line in lines) == 2
    assert any("first 120 frames | mawe_paper 43.25, clip_score 32.45 | not run" in line for line in lines)
    assert note.startswith("flow: DIS in place of")


@pytest.mark.parametrize("row", ["low-resolution", "blending-B"])
def test_a_row_in_miniature(prompts, tmp_path, random_weights, quick_config, monkeypatch, capsys, row):
    """The tiny model with random weights: files, means, and a table that does not take them for the full size's."""

    def loaded(preset, device):
        pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
        pipe.cfg = quick_config
        return pipe

    monkeypatch.setattr(paper_scale, "load", loaded)
    small = lambda video, prompt, clip, flow, prefixes: {  # noqa: E731
        "flow_deviation": MetricResult("flow_deviation", float(np.mean(video)))}  # fmt: skip
    monkeypatch.setattr(paper_scale, "measure", small)
    argv = ["paper", row, "--prompts", str(prompts), "--frames", "26", "--preset", "tiny", "--device", "cpu"]
    argv += ["--out", str(tmp_path / "v"), "--results", str(tmp_path / "r")]
    torch.manual_seed(0)
    assert cli.main(argv) == 0
    assert "not comparable" in capsys.readouterr().out
    found = json.loads((tmp_path / "r" / f"{row}.json").read_text())
    assert found["prompts"] == 2 and len(found["videos"]) == 2 and found["flow"]["flow"] == "dis"
    mean = np.mean([v["flow_deviation"] for v in found["videos"]])
    assert found["mean"]["flow_deviation"] == pytest.approx(mean, abs=0.01), "result files keep a few digits"
    stamps = [p.stat().st_mtime_ns for p in sorted((tmp_path / "v" / row).glob("*.mp4"))]
    assert len(stamps) == 2 and cli.main(argv) == 0
    assert stamps == [p.stat().st_mtime_ns for p in sorted((tmp_path / "v" / row).glob("*.mp4"))], "made once"
    assert cli.main([*argv, "--seed", "7"]) == 2 and "not the video that was asked for" in capsys.readouterr().err


def test_what_is_undefined_on_a_video_is_left_out_of_the_mean(tmp_path, capsys):
    nan = float("nan")
    assert paper_scale.means([{"a": 1.0, "b": nan}, {"a": nan, "b": nan}, {"a": 3.0, "b": nan}]) == {"a": 2.0}
    (tmp_path / "table1.json").write_text("{")
    assert cli.main(["paper", "table", "--results", str(tmp_path)]) == 2
    assert "no result of st2v paper" in capsys.readouterr().err


def test_stability_of_the_videos_of_table_1(prompts, tmp_path, random_weights, quick_config, monkeypatch, capsys):
    """Scores of the first frames come from the same pass, are averaged over videos, and stand beside the paper's."""

    def loaded(preset, device):
        pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
        pipe.cfg = quick_config
        return pipe

    few = {16: STABILITY[120], 24: STABILITY[140], 40: STABILITY[160]}
    measured = lambda *arguments, **options: measure(*arguments, size=(64, 64), motion_floor=0, **options)  # noqa: E731
    for name, value in {"load": loaded, "STABILITY": few, "measure": measured}.items():
        monkeypatch.setattr(paper_scale, name, value)
    clip = str(random_weights / "weights" / "tiny")
    argv = ["paper", "table1", "--prompts", str(prompts), "--frames", "26", "--preset", "tiny", "--device", "cpu"]
    argv += ["--clip", clip, "--out", str(tmp_path / "v"), "--results", str(tmp_path / "r")]
    assert cli.main(argv) == 0
    found = json.loads((tmp_path / "r" / "table1.json").read_text())
    assert list(found["stability"]) == ["16", "24"] and "stability" not in found["videos"][0]
    start = [read_video(tmp_path / "v" / "table1" / f"{i:03}.mp4")[:16] for i in range(2)]
    for name in ("mawe_paper", "clip_score"):
        texts = paper_scale.read_prompts(prompts)
        alone = [measured(video, text, load_clip(clip))[name].value for video, text in zip(start, texts)]
        assert found["stability"]["16"][name] == pytest.approx(np.mean(alone), rel=1e-3)
    shown = capsys.readouterr().out
    ours = f"mawe_paper {found['stability']['16']['mawe_paper']:.4g}"
    assert f"first 16 frames | mawe_paper 43.25, clip_score 32.45 | {ours}" in shown
    assert "first 40 frames | mawe_paper 46.79, clip_score 32.16 | too short" in shown


def test_an_estimator_that_is_not_there_is_told_first(prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper_scale, "load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    out = ["--out", str(tmp_path / "v"), "--results", str(tmp_path / "r")]
    assert cli.main(["paper", "blending", "--prompts", str(prompts), "--flow", "raft", *out]) == 2
    assert "needs torchvision" in capsys.readouterr().err
