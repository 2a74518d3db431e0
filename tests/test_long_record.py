"""The recorded long videos: one command makes numbers and pictures, and a figure says whose weights they are."""

import json

import numpy as np
import pytest

from st2v_lib.errors import OutputError
from st2v_lib.notebook import long_record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    assert long_record.main(["--frames", "32", "--others", "24", "--every", "10", "--out", str(folder)]) == 0
    return folder


def test_every_chunk_is_measured(folder):
    record, _ = long_record.read(folder)
    assert list(record["arms"]) == ["full", "without APM", "independent"]
    for name, arm in record["arms"].items():
        chunks = 3 if name == "full" else 2
        assert arm["frames"] == arm["ends"][-1] == 16 + 8 * (chunks - 1)
        assert set(arm["chunks"]) == {"colour", "contrast", "sharpness", "motion", "clip_distance"}
        assert all(len(values) == chunks and None not in values for values in arm["chunks"].values())
        assert len(arm["memory_mb"]) == chunks and min(arm["memory_mb"]) > 0
    assert {"command", "config", "seed", "versions", "weights", "seconds"} <= set(record)


def test_arms_share_the_first_chunk_and_part_after_it(folder):
    arms = long_record.read(folder)[0]["arms"].values()
    colours = [arm["chunks"]["colour"] for arm in arms]
    assert len({c[0] for c in colours}) == 1 and len({c[1] for c in colours}) == 3


def test_pictures_are_those_of_the_frames_named(folder):
    record, pictures = long_record.read(folder)
    assert record["arms"]["full"]["shown"] == [0, 10, 20, 30] and record["arms"]["independent"]["shown"] == [0, 10, 20]
    assert [v.shape for v in pictures.values()] == [(4, 64, 64, 3), (3, 64, 64, 3), (3, 64, 64, 3)]
    first = [v[0].astype(int) for v in pictures.values()]
    assert np.abs(first[0] - first[1]).mean() < 3 and np.abs(first[0] - first[2]).mean() < 3
    assert (folder / "long_record.webp").stat().st_size <= long_record.MAX_BYTES


def test_a_figure_says_whose_weights_they_are(folder, tmp_path):
    record, pictures = long_record.read(folder)
    assert "the shipped weights" in long_record.label(record)
    long_record.write(tmp_path, {**record, "weights": "0" * 12}, pictures)
    assert "OTHER WEIGHTS (000000000000)" in long_record.label(long_record.read(tmp_path)[0])


def test_a_record_that_is_missing_or_damaged_names_the_command(tmp_path):
    with pytest.raises(OutputError, match="python -m st2v_lib.notebook.long_record"):
        long_record.read(tmp_path)
    (tmp_path / "long_record.json").write_text(json.dumps({"arms": {}}))
    with pytest.raises(OutputError, match="python -m st2v_lib.notebook.long_record"):
        long_record.read(tmp_path)
