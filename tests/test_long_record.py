"""The recorded long videos: one command makes numbers and pictures, and a figure says whose weights they are."""

import dataclasses
import json

import numpy as np
import pytest

import st2v_lib
from st2v_lib.errors import OutputError
from st2v_lib.notebook import long_record


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Two denoising steps a chunk: what is tested is the record, not the pictures."""
    load = st2v_lib.load

    def quick(*args, **options):
        pipe = load(*args, **options)
        pipe.cfg = pipe.cfg.replace(sampling=dataclasses.replace(pipe.cfg.sampling, num_inference_steps=2))
        return pipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(st2v_lib, "load", quick)
        patch.setattr("st2v_lib.loading.load", quick)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    assert long_record.main(["--frames", "32", "--others", "24", "--every", "10", "--out", str(folder)]) == 0
    return folder


def test_every_chunk_is_measured(folder):
    record, _ = long_record.read(folder)
    assert list(record["arms"]) == ["full", "last frame", "without APM", "independent"]
    for name, arm in record["arms"].items():
        chunks = 3 if name in ("full", "last frame") else 2
        assert arm["frames"] == arm["ends"][-1] == 16 + 8 * (chunks - 1)
        assert set(arm["chunks"]) == {"colour", "contrast", "sharpness", "motion", "clip_distance"}
        assert all(len(values) == chunks and None not in values for values in arm["chunks"].values())
        assert len(arm["memory_mb"]) == chunks and min(arm["memory_mb"]) > 0
    assert {"command", "config", "seed", "versions", "weights", "seconds"} <= set(record)


def test_arms_share_the_first_chunk_and_part_after_it(folder):
    arms = long_record.read(folder)[0]["arms"].values()
    colours = [arm["chunks"]["colour"] for arm in arms]
    assert len({c[0] for c in colours}) == 1
    assert len({str(arm["chunks"]) for arm in arms}) == 4


def test_pictures_are_those_of_the_frames_named(folder):
    record, pictures = long_record.read(folder)
    assert record["arms"]["full"]["shown"] == [0, 10, 20, 30] and record["arms"]["independent"]["shown"] == [0, 10, 20]
    assert [v.shape for v in pictures.values()] == [(n, 64, 64, 3) for n in (4, 4, 3, 3)]
    first = [v[0].astype(int) for v in pictures.values()]
    assert all(np.abs(first[0] - other).mean() < 3 for other in first[1:])
    assert (folder / "long_record.webp").stat().st_size <= long_record.MAX_BYTES


def test_a_figure_says_whose_weights_they_are(folder, tmp_path):
    record, pictures = long_record.read(folder)
    assert "the shipped weights" in long_record.label(record)
    long_record.write(tmp_path, {**record, "weights": "0" * 12}, pictures)
    assert "OTHER WEIGHTS (000000000000)" in long_record.label(long_record.read(tmp_path)[0])


def test_an_arm_is_added_to_a_record_that_lacks_it(folder, tmp_path):
    """As a record that was made before there was such an arm."""
    record, pictures = long_record.read(folder)
    rest = {name: arm for name, arm in record["arms"].items() if name != "last frame"}
    older = {**record, "arms": rest, "changes": {name: record["changes"][name] for name in rest}}
    long_record.write(tmp_path, older, {name: pictures[name] for name in rest})
    assert list(long_record.read(tmp_path)[0]["arms"]) == ["full", "without APM", "independent"]
    arguments = ["--only", "last frame", "--frames", "24", "--every", "10", "--out", str(tmp_path)]
    assert long_record.main(arguments) == 0
    grown, shown = long_record.read(tmp_path)
    assert list(grown["arms"]) == list(shown) == list(record["arms"]) and grown["changes"] == record["changes"]
    assert {name: grown["arms"][name] for name in rest} == rest, "the other arms stay as they were"
    again = grown["arms"]["last frame"]
    assert again["chunks"]["colour"] == pytest.approx(record["arms"]["last frame"]["chunks"]["colour"][:2], rel=0.01)
    assert again["shown"] == [0, 10, 20] and again["versions"]["torch"]


@pytest.mark.parametrize("change", [{"weights": "0" * 12}, {"seed": 9}, {"every": 20}, {"config": {"size": 65}}])
def test_no_arm_is_added_to_a_record_of_something_else(folder, tmp_path, monkeypatch, change):
    record, pictures = long_record.read(folder)
    long_record.write(tmp_path, {**record, **change}, pictures)
    monkeypatch.setattr(long_record, "run", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(OutputError, match=f"another value of {next(iter(change))}.*make all arms again"):
        long_record.main(["--only", "last frame", "--every", "10", "--out", str(tmp_path)])


def test_a_record_that_is_missing_or_damaged_names_the_command(tmp_path):
    with pytest.raises(OutputError, match="python -m st2v_lib.notebook.long_record"):
        long_record.read(tmp_path)
    (tmp_path / "long_record.json").write_text(json.dumps({"arms": {}}))
    with pytest.raises(OutputError, match="python -m st2v_lib.notebook.long_record"):
        long_record.read(tmp_path)
