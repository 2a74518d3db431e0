"""The validity table: its damages, its rank correlations, and a small run of the whole."""

import json
import math

import numpy as np
import pytest
import torch

from st2v_lib.manifest import data_dir, weights_dir
from st2v_lib.metrics import validity
from st2v_lib.metrics.clip_score import load_clip
from st2v_lib.metrics.validity import ANCHOR, DAMAGES, FRAMES, LEVELS, SEAMS, damaged, rank_correlation, ranks, summary
from st2v_lib.world.reader import load_reader
from st2v_lib.world.render import render

SCENE = validity.scenes_of(1)[0]
RECORD = data_dir() / "results" / "metric_validity.json"


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_grows_with_its_level_and_spares_the_start(kind):
    clean = render(SCENE, FRAMES)[0]
    assert torch.equal(damaged(SCENE, kind, 0.0), clean)
    some, all_of_it = damaged(SCENE, kind, 0.5), damaged(SCENE, kind, 1.0)
    assert some.shape == all_of_it.shape == clean.shape and all_of_it.abs().max() <= 1
    if kind not in ("blur", "colour drift", "flicker"):
        torch.testing.assert_close(all_of_it[:ANCHOR], clean[:ANCHOR])
    changed = [(x - clean).abs().mean((1, 2, 3)) for x in (some, all_of_it)]
    assert changed[0].sum() > 0 and changed[1].sum() >= changed[0].sum()
    assert torch.equal(damaged(SCENE, kind, 0.5), some)  # nothing random but by scene


def test_unknown_damage_and_level_are_named():
    for kind, level in (("rain", 0.5), ("blur", 1.5)):
        with pytest.raises(ValueError, match="expected a level"):
            damaged(SCENE, kind, level)


def test_motion_damage_is_what_it_says():
    still = damaged(SCENE, "frozen", 1.0)
    assert torch.equal(still[ANCHOR:], still[ANCHOR - 1].expand(FRAMES - ANCHOR, -1, -1, -1))
    back = damaged(SCENE, "reversed", 1.0)
    torch.testing.assert_close(back[ANCHOR : ANCHOR + 15], back[: ANCHOR - 1].flip(0), atol=1e-5, rtol=0)
    cuts = damaged(SCENE, "hard cuts", 1.0)
    assert [t for t in range(1, FRAMES) if (cuts[t] - cuts[t - 1]).abs().mean() > 0.1] == list(SEAMS)


def test_ranks_share_ties():
    assert ranks(np.array([5.0, 1, 5, 9])).tolist() == [1.5, 0, 1.5, 3]


def test_rank_correlation_of_known_series():
    level = np.array(LEVELS)
    assert rank_correlation(level**3, level) == pytest.approx(1)
    assert rank_correlation(-level, level) == pytest.approx(-1)
    assert rank_correlation(np.ones(5), level) == 0  # does not notice
    # Spearman by hand: ranks 0 1 2 4 3 against 0..4, sum of squared differences 2: 1 - 6 * 2 / (5 * 24)
    assert rank_correlation(np.array([0.0, 1, 2, 9, 3]), level) == pytest.approx(0.9)
    assert rank_correlation(np.array([0.0, math.nan, 2, 9, 30]), level) == pytest.approx(1)
    assert math.isnan(rank_correlation(np.array([0.0, math.nan, math.nan, 9, math.nan]), level))


def test_summary_of_a_metric_that_is_right_in_one_scene_and_wrong_in_another():
    rows = np.array([LEVELS, LEVELS[::-1]])
    cell = summary(rows, lower=True)
    assert cell["correlation"] == pytest.approx(0) and cell["prefers_damage"] == 0.5 and cell["undefined"] == 0
    assert cell["sd"] == pytest.approx(math.sqrt(2)) and summary(rows[:1], lower=False)["correlation"] == -1
    shifted = summary(np.array(LEVELS) + np.array([[0.0], [100.0]]), lower=True)
    assert shifted["correlation"] == pytest.approx(1) and shifted["across"] < 0.9  # scenes differ more than damage


def test_a_small_run_finds_what_cannot_be_missed(monkeypatch, tmp_path):
    monkeypatch.setattr(validity, "LEVELS", (0.0, 0.5, 1.0))
    clip = load_clip(weights_dir("tiny"))
    scene = validity.measure_scene(SCENE, 0, ["hard cuts", "frozen"], load_reader(), clip)
    results = validity.summarise([scene])
    cell = {kind: {name: row["correlation"] for name, row in rows.items() if "correlation" in row}
            for kind, rows in results.items()}  # fmt: skip
    assert set(cell["frozen"]) == {*validity.LOWER, *validity.HIGHER}
    assert cell["hard cuts"]["scuts, min_scene_len 1"] == 1 and cell["hard cuts"]["warp_error"] == 1
    assert cell["frozen"]["|1 - motion_kept|"] > 0.8 and cell["frozen"]["motion"] == 1  # it saturates: a tie
    assert cell["frozen"]["warp_error"] == -1 and results["frozen"]["warp_error"]["prefers_damage"] == 1
    assert results["frozen"]["mawe static pairs"]["by_level"][1:] == [32, 64]
    validity.write_record(tmp_path / "table.json", results, 1, "test")
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["config"]["scenes"] == 1 and record["results"]["frozen"]["warp_error"]["sd"] is None
    assert set(validity.answers(results)) == {"6", "7", "8"} and "frozen" in validity.table(results)


@pytest.mark.skipif(not RECORD.exists(), reason="the table has not been measured")
def test_the_recorded_table_is_whole():
    record = json.loads(RECORD.read_text())
    assert record["config"]["split"] == "test" and record["command"].startswith("python -m st2v_lib.metrics.validity")
    assert set(record["results"]) == set(DAMAGES) and set(record["better"]) == {*validity.LOWER, *validity.HIGHER}
    for rows in record["results"].values():
        assert set(record["better"]) <= set(rows)
        assert all(-1 <= (rows[name]["correlation"] or 0) <= 1 for name in record["better"])  # null: not defined
