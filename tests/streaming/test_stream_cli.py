"""``st2v stream``: grows an mp4, goes on after real kills, branches, and tells mistakes on one line."""

from __future__ import annotations

import shutil

import pytest

from st2v_lib import cli, stream_cli
from st2v_lib.session import Session
from st2v_lib.video_io import probe

from .conftest import FRAMES, SEED, contents
from .kill import run_and_kill
from .micro import OTHER, PROMPT, write_micro


@pytest.fixture
def stream(micro_data, monkeypatch):
    """Runs ``st2v stream`` on the CPU with micro weights; returns its exit code."""
    monkeypatch.setenv("ST2V_DATA", str(micro_data))
    return lambda *arguments: cli.main(["stream", *map(str, arguments), "--device", "cpu"])


def test_stream_to_the_end(stream, whole, tmp_path, capsys):
    assert (
        stream(PROMPT, "--frames", FRAMES, "--seed", SEED, "--session", tmp_path / "s", "--out", tmp_path / "a.mp4")
        == 0
    )
    assert contents(tmp_path / "s") == whole[2]
    whole[0].write_video(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    printed = capsys.readouterr()
    assert printed.out.count("in the video") == 5 and "motion" in printed.out


@pytest.mark.slow
def test_five_real_kills(stream, micro_data, whole, tmp_path):
    """SIGKILL at five moments, each followed by ``--resume``; the mp4 is playable each time, the end is the same."""
    folder, out = tmp_path / "s", tmp_path / "live.mp4"
    arguments = [PROMPT, "--frames", FRAMES, "--seed", SEED, "--session", folder, "--out", out]
    for wait in (0.0, 0.03, 0.1, 0.2, 0.01):
        run_and_kill(micro_data, folder, wait, *arguments)
        arguments = ["--resume", folder, "--out", out]
        if out.exists():
            assert 0 < probe(out)["frames"] <= FRAMES
    assert stream(*arguments) == 0
    assert contents(folder) == whole[2]
    whole[0].write_video(tmp_path / "b.mp4")
    assert out.read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_ctrl_c_then_resume(stream, whole, tmp_path, capsys, monkeypatch):
    real = Session.run

    def interrupted(self):
        blocks = real(self)
        yield next(blocks)
        yield next(blocks)
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run", interrupted)
    assert stream(PROMPT, "--seed", SEED, "--session", tmp_path / "s") == 130
    assert f"--resume {tmp_path / 's'}" in capsys.readouterr().err
    monkeypatch.setattr(Session, "run", real)
    assert stream("--resume", tmp_path / "s", "--frames", FRAMES) == 0
    assert probe(tmp_path / "s" / "live.mp4")["frames"] == FRAMES
    assert contents(tmp_path / "s")["blocks/000003.safetensors"] == whole[2]["blocks/000003.safetensors"]


def test_branch_and_schedule(stream, whole, tmp_path):
    shutil.copytree(whole[0].folder, tmp_path / "s")
    assert stream(OTHER, "--branch", tmp_path / "s", "--at", 3, "--session", tmp_path / "b") == 0
    assert stream(
        PROMPT, "--prompt-at", 32, OTHER, "--frames", FRAMES, "--seed", SEED, "--session", tmp_path / "c"
    ) == 0  # fmt: skip
    for k in (3, 4):
        name = f"blocks/{k:06}.safetensors"
        assert contents(tmp_path / "b")[name] == contents(tmp_path / "c")[name] != whole[2][name]
    assert probe(tmp_path / "b" / "live.mp4")["frames"] == FRAMES


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a prompt"),
        ([PROMPT, "--frames", 8], "16 or more"),
        ([PROMPT, "--prompt-at", "x", OTHER], "frame of its own"),
        ([PROMPT, "--frames", 40, "--prompt-at", 40, OTHER], "ends at 39"),
        ([PROMPT, "--at", 3], "belongs to --branch"),
        ([PROMPT, "--resume", "d"], "PROMPT cannot be given with --resume"),
        (["--resume", "d", "--steps", 3], "--steps cannot be given"),
        (["--resume", "d", "--seed", 0], "--seed cannot be given"),
        (["--resume", "d", "--branch", "d"], "not both"),
        (["--branch", "d"], "needs --at"),
        ([PROMPT, "--eta", 1.0], "choose sampler"),
        ([PROMPT, "--out", "x.avi"], "ends in .mp4"),
        ([PROMPT, "--out", "/dev/null/x.mp4"], "cannot write"),
    ],
)
def test_mistakes_are_told_before_loading(stream, monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(stream_cli, "load", None)
    assert stream(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_no_session_and_a_session_that_is_there(stream, tmp_path, capsys):
    assert stream("--resume", tmp_path) == 2
    assert "no session here" in capsys.readouterr().err
    arguments = (PROMPT, "--frames", 16, "--no-enhance", "--session", tmp_path / "s")
    assert stream(*arguments) == 0
    assert stream(*arguments) == 2
    assert "--resume" in capsys.readouterr().err


def test_other_weights_make_other_frames_and_are_not_mixed(stream, tmp_path, capsys):
    own = write_micro(tmp_path / "data", seed=1) / "weights" / "tiny"
    arguments = (PROMPT, "--frames", 16, "--no-enhance", "--session")
    assert stream(*arguments, tmp_path / "a") == stream(*arguments, tmp_path / "b", "--weights", own) == 0
    first = [(tmp_path / name / "blocks" / "000000.safetensors").read_bytes() for name in "ab"]
    assert first[0] != first[1]
    assert stream("--resume", tmp_path / "b") == 2
    assert "other weights" in capsys.readouterr().err
    assert stream("--resume", tmp_path / "b", "--weights", own) == 0
    assert cli.main(["generate", PROMPT, "--weights", str(tmp_path / "none"), "--out", str(tmp_path / "x.mp4")]) == 2
    assert "no weights of 'tiny' in" in capsys.readouterr().err
