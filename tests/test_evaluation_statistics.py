"""Intervals and paired differences with known answers, and result files that resume."""

import math

import numpy as np
import pytest

from st2v_lib.errors import OutputError, UserError
from st2v_lib.evaluation.results import Run, plain, read_result, read_results, values_of
from st2v_lib.evaluation.statistics import (
    Interval,
    bootstrap,
    interval,
    over_runs,
    paired_difference,
    verdict,
    wilson,
)


def test_bootstrap_of_a_normal_sample_is_the_textbook_interval():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap(values) == (low, high), "the same values give the same interval"


def test_bootstrap_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        low, high = bootstrap(rng.exponential(1.0, 50), draws=1000)
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 300 <= 0.98  # a percentile bootstrap is a little short at n = 50


def test_wilson_interval():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    right = interval([1.0] * 10, share=True)
    assert right.low == pytest.approx(0.7225, abs=1e-4), "all right is not certainly right"
    assert interval([1.0] * 10).low == 1.0, "but that many cuts in every video is that many"
    assert interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 3)


def test_too_few_values_have_no_interval():
    assert interval([]).n == 0 and math.isnan(interval([]).mean)
    one = interval([3.0, math.nan])
    assert (one.mean, one.n) == (3.0, 1) and math.isnan(one.low)
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval([1.0, 2.0], level=95)


def test_paired_difference():
    rng = np.random.default_rng(3)
    hard = {i: float(v) for i, v in enumerate(rng.normal(0, 10, 60))}  # videos differ far more than the arms
    better = {i: v - 0.5 + 0.1 * float(rng.normal()) for i, v in hard.items()}
    found = paired_difference(better, hard)
    assert found.mean == pytest.approx(-0.5, abs=0.05)
    assert found.high < 0, "pairing sees what intervals of the means cannot"
    assert interval(list(better.values())).high > interval(list(hard.values())).low
    exact = paired_difference({1: 2.0, 2: 5.0, 3: 9.0}, {1: 1.0, 2: 4.0, 4: 0.0, 3: math.nan})
    assert exact == Interval(1.0, 1.0, 1.0, 2), "only videos that both have"
    assert math.isnan(paired_difference({1: 1.0}, {2: 1.0}).mean)


def test_verdicts():
    assert verdict(Interval(1, 0.5, 1.5, 9), 1) == "better"
    assert verdict(Interval(1, 0.5, 1.5, 9), -1) == "worse"
    assert verdict(Interval(1, -0.5, 2.5, 9), 1) == "tie"
    assert verdict(Interval(1, math.nan, math.nan, 1), 1) == "too few"
    assert verdict(paired_difference(dict.fromkeys(range(2), 1.0), dict.fromkeys(range(2), 0.0)), 1) == "too few"
    assert verdict(paired_difference(dict.fromkeys(range(6), 1.0), dict.fromkeys(range(6), 0.0)), 1) == "better"


def test_seeds_are_averaged_within_a_video_first():
    assert over_runs([{0: 1.0, 1: 4.0}, {0: 3.0, 1: math.nan}]) == {0: 2.0, 1: 4.0}


def video(index, **values):
    return {"index": index, "prompt": "p", "values": values, "seconds": 1.0}


def test_a_run_resumes_and_merges(tmp_path):
    run = Run(tmp_path, "cam/none-dev-seed0", {"suite": "cam", "seed": 0})
    run.add([video(2, x=2.0), video(3, x=math.nan)], {"torch": "a"})
    again = Run(tmp_path, "cam/none-dev-seed0", {"suite": "cam", "seed": 0})
    assert sorted(again.videos) == [2, 3], "parts of an interrupted run count"
    again.add([video(0, x=0.0)], {"torch": "b"})
    path = again.merge()
    content = read_result(path)
    assert [v["index"] for v in content["videos"]] == [0, 2, 3]
    assert content["made_with"] == [{"torch": "a"}, {"torch": "b"}]
    assert content["seconds"] == 3.0
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no part and no temporary file is left"
    (result,) = read_results(tmp_path, "cam")
    values = values_of(result, "x")
    assert values[2] == 2.0 and math.isnan(values[3])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match="no result file, or damaged"):
        read_results(tmp_path, "cam")
    assert read_results(tmp_path, "apm") == []


def test_numbers_of_many_digits_in_an_identity_are_the_same_when_read_back(tmp_path):
    """A trained arm's record has a loss."""
    identity = {"training": {"loss": 0.38069748878479004, "spread": float("nan")}}
    run = Run(tmp_path, "cam/cam", identity)
    run.add([{"index": 0, "seconds": 1.0, "values": {}}], {})
    run.merge()
    assert list(Run(tmp_path, "cam/cam", identity).videos) == [0]


def test_a_run_made_otherwise_is_refused(tmp_path):
    Run(tmp_path, "cam/none", {"seed": 0, "weights_sha256": "a"}).add([video(0)], {})
    with pytest.raises(UserError, match="other weights_sha256"):
        Run(tmp_path, "cam/none", {"seed": 0, "weights_sha256": "b"})
    (tmp_path / "cam" / "full.json").write_text("[]")
    with pytest.raises(UserError, match="no result file"):
        Run(tmp_path, "cam/full", {})


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "cam").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="cannot be written"):
        Run(tmp_path, "cam/none", {}).add([video(0)], {})


def test_plain_json():
    assert plain({"a": (1.23456789, math.inf), 2: math.nan}) == {"a": [1.23457, None], "2": None}
