"""The command line: quick to start, one clear line for a user's error, arguments handed on as they were given."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import types

import pytest

import st2v_lib
from st2v_lib import cli, errors


def run_python(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a function in the place of a sub-command's module and returns the namespaces it was called with."""
    calls = []

    def place(module: str, action=lambda args: None):
        fake = types.SimpleNamespace(run=lambda args: (calls.append(args), action(args))[1])
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: {module: fake}[name])
        return calls

    return place


@pytest.mark.parametrize("code", ["import st2v_lib", "import st2v_lib.cli; st2v_lib.cli.build_parser().format_help()"])
def test_start_is_quick_and_without_torch(code):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run_python("-c", f"import sys; {code}; print({{'torch', 'diffusers', 'numpy'}} & set(sys.modules))")
        seconds.append(time.perf_counter() - start)
        assert done.stdout.strip() == "set()", done.stderr
    assert min(seconds) < 1


def test_help_lists_only_commands_that_exist():
    done = run_python("-m", "st2v_lib.cli", "--help")
    assert done.returncode == 0
    for command in ("generate", "metrics", "train", "doctor"):
        assert f"\n    {command} " in done.stdout


def test_generate_arguments(stand_in):
    calls = stand_in("st2v_lib.generate_cli")
    assert cli.main(["generate", "a red circle", "--out", "x.mp4", "--demo"]) == 0
    assert (
        cli.main(["generate", "p", "--sampler", "ddim", "--steps", "50", "--eta", "1", "--no-enhance", "--demo", "d"])
        == 0
    )
    first, second = calls
    assert (first.prompt, first.frames, first.seed, str(first.out)) == ("a red circle", 80, 0, "x.mp4")
    assert (first.preset, first.device, first.sampler, first.steps, first.eta) == ("tiny", "auto", None, None, None)
    assert (first.guidance, first.no_enhance, first.demo) == (None, False, cli.DEMO_DIR)
    assert (second.sampler, second.steps, second.eta, second.no_enhance, str(second.demo)) == (
        "ddim",
        50,
        1.0,
        True,
        "d",
    )


def test_metrics_and_train_arguments(stand_in):
    calls = stand_in("st2v_lib.metrics.cli")
    assert cli.main(["metrics", "v.mp4", "--prompt", "p", "--json"]) == 0
    assert (str(calls[0].video), calls[0].prompt, calls[0].json) == ("v.mp4", "p", True)
    calls = stand_in("st2v_lib.training.cli")
    assert cli.main(["train", "all", "--minutes", "9", "--out", "o", "--data", "d", "--resume"]) == 0
    args = calls[-1]
    assert (args.phase, args.minutes, str(args.out), str(args.data), args.resume) == ("all", 9.0, "o", "d", True)
    assert (args.preset, args.device) == ("tiny", "auto")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["paint"],
        ["generate"],
        ["generate", "p", "--sampler", "euler"],
        ["generate", "p", "--preset", "huge"],
        ["generate", "p", "--frames", "many"],
        ["train", "sleep"],
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "error: " in err and "--help" in err


@pytest.mark.parametrize("kind", [errors.UserError, *errors.UserError.__subclasses__()])
def test_user_errors_are_one_line_and_code_2(kind, stand_in, capsys):
    def fail(args):
        raise kind("frames is 3;\n  16 or more are needed")

    stand_in("st2v_lib.generate_cli", fail)
    assert cli.main(["generate", "p"]) == 2
    assert capsys.readouterr().err == "st2v generate: error: frames is 3; 16 or more are needed\n"


def test_other_errors_keep_their_traceback_and_codes_pass_through(stand_in):
    def fail(args):
        raise RuntimeError("a bug")

    stand_in("st2v_lib.generate_cli", fail)
    with pytest.raises(RuntimeError):
        cli.main(["generate", "p"])
    stand_in("st2v_lib.doctor", lambda args: 1)
    assert cli.main(["doctor"]) == 1


def test_interrupt_is_code_130(stand_in, capsys):
    def fail(args):
        raise KeyboardInterrupt

    stand_in("st2v_lib.generate_cli", fail)
    assert cli.main(["generate", "p"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_errors_are_also_the_expected_built_ins():
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.OutputError, OSError)
    assert str(errors.OutputError("no place")) == "no place"


def test_lazy_names():
    assert {"StreamingUNet", "PatchedAutoencoderKL", "Cam", "Apm", "StreamingT2VPipeline", "ModelMixin"} <= set(
        dir(st2v_lib)
    )
    assert st2v_lib.preset("tiny").name == "tiny"
    assert st2v_lib.StreamingT2VConfig().name == "modelscope"
    assert st2v_lib.ModelMixin.__module__.startswith("diffusers")
    assert getattr(st2v_lib, "SchedulerMixin", None) is None  # diffusers asks like this for every class it knows


@pytest.mark.parametrize("name", ["StreamingUNet", "PatchedAutoencoderKL", "Cam", "Apm", "StreamingT2VPipeline"])
def test_component_classes_are_found_on_the_package(name):
    importlib.import_module(st2v_lib._LAZY[name])
    assert getattr(st2v_lib, name).__name__ == name
