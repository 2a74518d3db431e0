"""``st2v generate``: complete files or none, one clear line for a mistake, everything a demo promises."""

from __future__ import annotations

import argparse
import json
import shutil
import weakref

import cv2
import numpy as np
import pytest
import torch
from streaming.micro import write_micro

from st2v_lib import cli, generate_cli
from st2v_lib.loading import load, write_index
from st2v_lib.manifest import write_manifest
from st2v_lib.pipeline import StreamingT2VPipeline
from st2v_lib.stages import FrameStream
from st2v_lib.video_io import VideoWriter, probe, read_video, to_uint8

PROMPT = "a red circle bounces over green stripes"


@pytest.fixture(scope="module")
def quick_data(random_weights, quick_config, tmp_path_factory):
    data = tmp_path_factory.mktemp("quick") / "data"
    shutil.copytree(random_weights, data)
    write_index(data / "weights" / "tiny", quick_config)
    write_manifest(data / "weights" / "tiny")
    return data


@pytest.fixture
def generate(quick_data, monkeypatch):
    """Runs ``st2v generate`` on the CPU with random weights; returns its exit code."""
    monkeypatch.setenv("ST2V_DATA", str(quick_data))

    def call(*arguments, prompt=PROMPT):
        return cli.main(["generate", prompt, "--device", "cpu", *map(str, arguments)])

    return call


def test_low_resolution_file_with_metadata(generate, tmp_path, capsys):
    out = tmp_path / "new folder" / "circle.mp4"
    assert generate("--frames", 17, "--seed", 5, "--out", out, "--no-enhance", "--steps", 3, "--paste") == 0
    info = probe(out)
    assert (info["frames"], info["width"], info["height"], info["fps"]) == (17, 64, 64, 8.0)
    assert (info["metadata"]["prompt"], info["metadata"]["seed"]) == (PROMPT, 5)
    config = info["metadata"]["config"]
    assert (config["sampling"]["num_inference_steps"], config["conditioning"]) == (3, "cam+replacement")
    assert [path.name for path in out.parent.iterdir()] == ["circle.mp4"]
    printed = capsys.readouterr()
    assert "base chunk" in printed.out and "streaming" in printed.out and "enhancement" not in printed.out
    assert str(out) in printed.out and "100%" in printed.err


def test_demo_writes_all_it_promises(generate, tmp_path, capsys):
    assert generate("--frames", 17, "--demo", tmp_path, "--out", tmp_path / "copy.mp4") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "contact_sheet.png", "copy.mp4", "enhanced.mp4", "low_resolution.mp4",
        "metrics.json", "metrics.txt", "xt_slice.png",
    ]  # fmt: skip
    assert probe(tmp_path / "low_resolution.mp4")["width"] == 64
    assert probe(tmp_path / "enhanced.mp4")["width"] == 80
    assert np.array_equal(read_video(tmp_path / "copy.mp4"), read_video(tmp_path / "enhanced.mp4"))
    assert cv2.imread(str(tmp_path / "xt_slice.png")).shape == (4 * 17, 80, 3)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"mawe_code", "mawe_paper", "scuts", "motion", "clip_score"} <= set(metrics)
    assert -100 <= metrics["clip_score"]["value"] <= 100
    table = (tmp_path / "metrics.txt").read_text()
    assert table.startswith(PROMPT) and "clip_score" in table
    printed = capsys.readouterr().out
    assert "enhancement" in printed and "mawe_code" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--frames", 12], "16 or more, got 12"),
        (["--seed", -3], "seed"),
        (["--steps", 0], "num_inference_steps"),
        (["--eta", 1], "ddim"),
        (["--sampler", "ddim", "--eta", 2], "0 to 1"),
        (["--guidance", -2], "guidance"),
        (["--device", "cuda:99"], "not there"),
        (["--device", "toaster"], "unknown device"),
        (["--out", "video.gif"], ".mp4"),
        (["--dtype", "fp16"], "'tiny' runs in float32, bfloat16, got float16"),
        (["--preset", "modelscope"], "no weights of 'modelscope'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(generate, arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StreamingT2VPipeline, "stream", None)
    assert generate(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "error: " in err and says in err
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_empty_prompt_and_unknown_words(generate, tmp_path, capsys):
    assert generate(prompt="") == 2
    assert "the prompt is empty" in capsys.readouterr().err
    out = tmp_path / "x.mp4"
    assert generate("--frames", 16, "--no-enhance", "--out", out, prompt="a red zebra bounces over green stripes") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "zebra" in warnings[0] and "circle" in warnings[0]


def test_a_place_that_cannot_be_written_is_known_before_loading(generate, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generate_cli, "load", None)
    (tmp_path / "file").write_text("")
    for place in (["--out", tmp_path / "file" / "x.mp4"], ["--demo", tmp_path / "file"], ["--out", tmp_path]):
        assert generate(*place) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (RuntimeError, None)])
def test_a_failure_half_way_leaves_the_old_file(generate, error, code, tmp_path, monkeypatch):
    out = tmp_path / "x.mp4"
    out.write_bytes(b"the old one")

    def fail(self, video, *rest, **options):
        yield next(iter(video))
        raise error

    monkeypatch.setattr(StreamingT2VPipeline, "enhance", fail)
    if code is None:
        with pytest.raises(error):
            generate("--frames", 16, "--out", out)
    else:
        assert generate("--frames", 16, "--out", out) == code
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    assert out.read_bytes() == b"the old one"


def test_weights_without_an_enhancer(generate, quick_data, quick_config, tmp_path, capsys, monkeypatch):
    shutil.copytree(quick_data, tmp_path / "data")
    folder = tmp_path / "data" / "weights" / "tiny"
    shutil.rmtree(folder / "enhancer")
    write_index(folder, quick_config)
    write_manifest(folder)
    monkeypatch.setenv("ST2V_DATA", str(tmp_path / "data"))
    assert generate("--frames", 16, "--out", tmp_path / "x.mp4") == 2
    assert "--no-enhance" in capsys.readouterr().err and not (tmp_path / "x.mp4").exists()
    assert generate("--frames", 16, "--out", tmp_path / "x.mp4", "--no-enhance") == 0


class Writer(VideoWriter):
    """Keeps what is written, in place of an mp4."""

    def __init__(self):
        self.frames = []

    def write(self, frames):
        self.frames.append(frames)


def options(frames, demo=None):
    return argparse.Namespace(frames=frames, seed=3, chunk_batch=1, demo=demo)


def test_both_videos_are_those_of_a_call(tmp_path):
    pipe = load("tiny", "cpu", write_micro(tmp_path / "data") / "weights" / "tiny")
    whole, low, high = pipe(PROMPT, 33, seed=3, progress=False), Writer(), Writer()
    video, _ = generate_cli._make(pipe, PROMPT, options(33, "demo"), {}, [low], [high])
    assert np.array_equal(np.concatenate(low.frames), to_uint8(whole.low_res[0]))
    assert np.array_equal(np.concatenate(high.frames), to_uint8(whole.frames[0])) and np.array_equal(
        video, to_uint8(whole.frames[0])
    )


@pytest.mark.parametrize("enhance", [True, False])
@pytest.mark.parametrize("demo", [None, "demo"])
def test_blocks_are_let_go_as_soon_as_they_are_written(random_weights, monkeypatch, enhance, demo):
    pipe, alive, most = load("tiny", "cpu", random_weights / "weights" / "tiny"), weakref.WeakSet(), []

    def block(*_):
        alive.add(new := torch.zeros(1, 8, 3, 64, 64))
        most.append(len(alive))
        return new

    class Written(Writer):
        def write(self, frames):
            array = weakref.ref(frames.base if frames.base is not None else frames)
            arrays.append(array)
            most_arrays.append(sum(ref() is not None for ref in arrays))

    arrays, most_arrays = [], []
    stream = FrameStream(((block(), None) for _ in range(20)), pipe.cfg, cost=20)
    monkeypatch.setattr(pipe, "stream", lambda *_, **__: stream)
    monkeypatch.setattr(pipe, "enhance", lambda blocks, *_, **__: map(block, blocks))
    video, _ = generate_cli._make(pipe, PROMPT, options(160, demo), {}, [Written()], [Written()] if enhance else [])
    assert len(arrays) == (40 if enhance else 20) and max(most) <= 5
    if demo is None:
        assert video is None and max(most_arrays) <= 4
    else:
        assert video.shape == (160, 64, 64, 3)


def test_contact_sheet_shows_first_and_last():
    video = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(5, 2).repeat(3, 3)
    sheet = generate_cli.contact_sheet(video, columns=4, rows=2, gap=2)
    assert sheet.shape == (2 * 8 + 2, 4 * 7 + 2, 3)
    assert sheet[2, 2, 0] == 0 and sheet[-3, -3, 0] == 19 and sheet[0, 0, 0] == 255
