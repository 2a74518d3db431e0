"""``st2v doctor`` and the manifest it checks the shipped weights with."""

from __future__ import annotations

import json
import shutil

import pytest

from st2v_lib import cli, doctor, manifest
from st2v_lib.errors import WeightsError
from st2v_lib.loading import load


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A small intact folder of weights, in a data folder of its own."""
    monkeypatch.setenv("ST2V_DATA", str(tmp_path))
    folder = tmp_path / "weights" / "tiny"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("a card")
    (folder / ".hidden").write_text("not weights")
    manifest.write_manifest(folder)
    return folder


def test_data_folder_is_the_repository_s_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("ST2V_DATA", raising=False)
    assert (manifest.data_dir().parent / "pyproject.toml").is_file()
    monkeypatch.setenv("ST2V_DATA", str(tmp_path))
    assert manifest.weights_dir() == tmp_path / "weights" / "tiny"


def test_manifest_lists_sizes_and_digests(weights):
    entries = json.loads((weights / "manifest.json").read_text())
    assert sorted(entries) == ["config.json", "unet/model.safetensors"]
    assert entries["unet/model.safetensors"]["bytes"] == 256
    assert len(entries["config.json"]["sha256"]) == 64
    assert manifest.write_manifest(weights) == entries, "writing it again changes nothing"
    assert manifest.verify_manifest(weights) == []
    manifest.require_intact(weights)


def damage(weights, how):
    model = weights / "unet" / "model.safetensors"
    if how == "one bit":
        model.write_bytes(bytes([1, *range(1, 256)]))
    elif how == "cut short":
        model.write_bytes(model.read_bytes()[:100])
    elif how == "file gone":
        model.unlink()
    elif how == "manifest gone":
        (weights / "manifest.json").unlink()
    elif how == "manifest empty":
        (weights / "manifest.json").write_text("{}")
    elif how == "manifest of another form":
        (weights / "manifest.json").write_text('["model.safetensors"]')
    else:
        (weights / "manifest.json").write_text('{"unet/')


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("one bit", "is damaged"),
        ("cut short", "100 bytes instead of 256"),
        ("file gone", "model.safetensors is missing"),
        ("manifest gone", "manifest.json is missing"),
        ("manifest empty", "lists no file"),
        ("manifest of another form", "cannot be read"),
        ("manifest cut", "cannot be read"),
    ],
)
def test_damage_is_named_and_doctor_exits_1(weights, how, says, capsys):
    damage(weights, how)
    (problem,) = manifest.verify_manifest(weights)
    assert says in problem
    with pytest.raises(WeightsError, match=says):
        manifest.require_intact(weights)
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert says in shown and "tiny: cannot run here, its weights are not intact" in shown


def test_doctor_on_an_intact_machine(weights, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_memory", lambda: {"total": 16.0, "free": 12.0})
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for topic in ("python", "packages", "device", "memory", "disk", "ffmpeg", "preset", "weights"):
        assert f"\n{topic} " in f"\n{shown}"
    assert "torch " in shown and "cpu: " in shown
    assert "tiny: can run here" in shown and "2 files, 0.0 MB, intact" in shown


def test_downloaded_weights_have_their_sizes_compared_and_digests_by_the_doctor(weights, capsys, monkeypatch):
    folder = weights.parent / "modelscope"
    shutil.copytree(weights, folder)
    (folder / "unet" / "model.safetensors").write_bytes(bytes([1, *range(1, 256)]))
    assert manifest.verify_manifest(folder, digests=False) == []
    assert cli.main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "modelscope: NOT INTACT" in shown and "model.safetensors is damaged" in shown
    assert "tiny: 2 files" in shown


def test_what_to_do_about_weights_that_do_not_come_with_the_kit(weights, monkeypatch):
    folder = weights.parent / "modelscope"
    for name in ("unet", "cam", "apm"):
        (folder / name).mkdir(parents=True)
    with pytest.raises(WeightsError, match="vae, text_encoder, tokenizer, .*enhancer, base missing: st2v download"):
        load("modelscope", "cpu")
    (folder / "model_index.json").write_text("{}")
    manifest.write_manifest(folder)
    monkeypatch.setattr(manifest, "sha256", None)
    with pytest.raises(WeightsError, match="cannot be loaded|is no pipeline"):
        load("modelscope", "cpu")
    (folder / "model_index.json").write_text("{ }")
    with pytest.raises(WeightsError, match="3 bytes instead of 2. Remove .* st2v download .*st2v convert"):
        load("modelscope", "cpu")


def test_git_restores_only_what_it_has(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "own")
    for folder, remedy in ((None, "git checkout -- "), (tmp_path / "own", "st2v train")):
        ((folder or weights) / "config.json").unlink()
        with pytest.raises(WeightsError, match=remedy):
            load("tiny", "cpu", folder)


def test_doctor_as_json(weights, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"]["tiny"]["files"] == 2
    assert set(found["presets"]) == {"tiny", "modelscope"}
    assert found["devices"][0]["kind"] == "cpu"


@pytest.mark.parametrize(("total", "runs"), [(None, False), (11.6, False), (15.8, True), (80.0, True)])
def test_modelscope_needs_a_large_gpu(total, runs):
    gpu = (
        []
        if total is None
        else [{"name": "cuda:0", "kind": "cuda", "detail": "a card", "free_gb": 1.0, "total_gb": total}]
    )
    presets = doctor._presets({"total": 8.0, "free": 1.5}, gpu, {"tiny": {"problems": []}})
    assert presets["modelscope"]["runs"] is runs
    assert presets["tiny"] == {"runs": False, "why": "it needs 2 GB of free memory"}


def test_doctor_survives_a_missing_torch(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert doctor._devices() == [{"name": "cpu", "kind": "cpu", "detail": "torch is not installed"}]
    assert doctor._version("no-such-package-here") is None
