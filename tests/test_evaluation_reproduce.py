"""Tables and figures come from result files alone, and say what was not run."""

import numpy as np
import pytest

from st2v_lib import cli
from st2v_lib.errors import UserError
from st2v_lib.evaluation import figures, floors_table, reproduce, waiting
from st2v_lib.evaluation.cli import SUITES
from st2v_lib.evaluation.reproduce import CAM_COLUMNS
from st2v_lib.evaluation.results import write_result
from st2v_lib.evaluation.statistics import Interval
from st2v_lib.evaluation.tables import comparable, groups, plain, show, table
from st2v_lib.evaluation.training_seeds import by_training_seed, signs


def write(folder, suite, arm, values, seed=0, training=None, frames=80, speed="world", **more):
    """A result file whose videos have ``values[name][i]``."""
    count = len(next(iter(values.values())))
    videos = [
        {
            "index": i,
            "prompt": "p",
            "values": {k: v[i] for k, v in values.items()},
            **{k: v[i] for k, v in more.items()},
        }
        for i in range(count)
    ]
    name = arm if training is None else f"{arm}-{training['seed']}"
    identity = {
        "suite": suite, "arm": name, "split": "test", "seed": seed, "training": training,
        "options": {"frames": frames, "sprites": 1, "speed": speed},
    }  # fmt: skip
    file = f"{name}-fast" if speed == "fast" else name
    write_result(folder / suite / f"{file}-seed{seed}.json", {"identity": identity, "made_with": [], "videos": videos})


def trained(arm, seed, clips=4000, base="b"):
    return {"arm": arm, "seed": seed, "clips": clips, "clips_asked": clips, "base_sha256": base}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    video = np.arange(20.0)
    for seed in (0, 1, 2):
        write(
            folder,
            "cam",
            "cam",
            {"seam_bend": list(video / 10), "scuts": [0.0] * 20},
            training=trained("cam", seed),
        )
        rival = {"seam_bend": list(video / 10 + 1), "scuts": [0.0] * 20}
        write(folder, "cam", "add_cond", rival, training=trained("add_cond", seed))
    write(folder, "cam", "none", {"seam_bend": list(video / 10 + 5), "scuts": [1.0] * 20})
    return folder


def test_rows_intervals_differences_and_what_is_missing(results):
    (group,) = groups(results, "cam", "test")
    text = table(group, ("none", "concat_cond", "add_cond", "cam"), CAM_COLUMNS[:1], {"cam": "SCuts 0.03"}, "cam")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "not run" in rows["concat_cond"]
    assert "0.950 [" in rows["cam"] and "SCuts 0.03" in rows["cam"]
    assert "1 × 3 trained" in rows["cam"] and "| 20 " in rows["cam"]
    differences = text.split("\n\n")[-1]
    assert "+1.00 [+1.00, +1.00] (worse)" in differences, "the same videos differ by exactly 1"
    assert "concat_cond" not in differences


def test_the_papers_claims_are_tested(results):
    text = reproduce.table_cam(results, "test", results)
    assert "smoother joints with CAM than with Add-Cond: **agrees**" in text
    assert "fewer cuts with CAM than with Add-Cond: **tie**" in text
    assert "smoother joints with CAM than with Conc-Cond: **not run**" in text
    (results / "cam" / "notes.md").write_text("Because the clips are few.\n")
    assert "Because the clips are few." in reproduce.table_cam(results, "test", results)


def test_budgets_and_bases_are_not_mixed(results):
    write(results, "cam", "cam_x", {"seam_bend": [0.0, 1.0]}, training=trained("cam", 0, clips=1000))
    titles = [g.title for g in groups(results, "cam", "test")]
    assert len(titles) == 2 and "1000 clips" in titles[0] and "4000 clips" in titles[1]
    assert groups(results, "cam", "dev") == []
    text = reproduce.table_cam(results, "test", results)
    curve = text[text.index("learning curve") :]
    assert "1000" in curve and "4000" in curve and "0.500 [" in curve and "0.950 [" in curve
    write(results, "cam", "cam_y", {"seam_bend": [0.0, 1.0]}, training=trained("cam", 1, base="another"))
    with pytest.raises(UserError, match="different base models"):
        groups(results, "cam", "test")


def test_other_steps_are_another_table_and_unfinished_arms_are_refused(results):
    quick = trained("add_cond", 3) | {"steps": 500, "processes": 2}
    write(results, "cam", "add_quick", {"seam_bend": [9.0] * 20}, training=quick)
    slow, fast = groups(results, "cam", "test")
    assert fast.title.endswith("arms trained on 4000 clips in 500 steps on 2 processes") and len(slow.rows) == 3
    assert max(slow.values("add_cond", "seam_bend").values()) < 9 and set(fast.rows) == {"none", "add_cond"}
    write(results, "cam", "add_part", {"seam_bend": [9.0]}, training=trained("add_cond", 4) | {"clips": 3000})
    with pytest.raises(UserError, match="add_part-4 was trained on 3000 of 4000 clips"):
        groups(results, "cam", "test")


def test_trained_arms_are_compared_seed_by_seed(results):
    for seed in (0, 1, 2):
        write(results, "cam", "cam", {"seam_bend": [float(seed)] * 20}, training=trained("cam", seed))
    write(results, "cam", "cam_1", {"seam_bend": [0.5] * 20}, training=trained("cam_1", 0))
    (group,) = groups(results, "cam", "test")
    assert group.paired("cam_1", "cam", "seam_bend").mean == 0.5, "less seed 0's, not the mean of three"
    assert group.paired("none", "cam", "seam_bend").n == 20
    write(results, "cam", "cam_2", {"seam_bend": [0.5] * 20}, training=trained("cam_2", 7))
    (group,) = groups(results, "cam", "test")
    assert group.paired("cam_2", "cam", "seam_bend").n == 0, "no seed in common"


def test_cells_on_fewer_videos_say_so(tmp_path):
    values = {"counts": [1.0] * 8, "waiting": [2.0] * 3 + [None] * 5}
    for arm in ("with", "alpha0"):
        write(tmp_path, "apm", arm, values, frames=72)
    text = reproduce.table_apm(tmp_path, "test", tmp_path)
    assert text.count(", n = 3") == 3 and "n = 8" not in text and "frames waited, given return" in text
    assert "less alpha0, same videos" in text, "without trained arms the shipped weights are compared"


def test_alpha_0_is_compared_with_apm_of_the_same_seed(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "apm", "apm", {"pattern_kept": [1.0] * 8}, training=trained("apm", seed))
    write(tmp_path, "apm", "apm_alpha0", {"pattern_kept": [0.0] * 8}, training=trained("apm_alpha0", 0))
    text = reproduce.table_apm(tmp_path, "test", tmp_path)
    assert "less apm, same videos" in text and "-100 % [-100, -100] (worse)" in text


def test_whose_pattern_returns_with_a_wrong_anchor(tmp_path):
    write(tmp_path, "apm-anchors", "first_frame", {"pattern_kept": [1.0] * 4}, frames=72)
    assert "anchor of another video" not in reproduce.table_apm(tmp_path, "test", tmp_path)
    values = {"pattern_kept": [0.0, 1.0, 0.0, None], "wrong_pattern_kept": [1.0, 0.0, None, None]}
    write(tmp_path, "apm-anchors", "wrong_video", values, frames=72)
    said = reproduce.table_apm(tmp_path, "test", tmp_path).splitlines()[-1]
    assert "its own pattern in 33.3 %" in said and "of 3 cases" in said and "50.0 %" in said and said.endswith("of 2.")


def test_shipped_cam_stands_in_for_the_trained_one(tmp_path):
    for arm, bend in (("cam-shipped", 1.0), ("none", 3.0)):
        write(tmp_path, "cam", arm, {"seam_bend": [bend] * 8})
    assert "less cam-shipped, same videos" in reproduce.table_cam(tmp_path, "test", tmp_path)
    assert "less cam-shipped, same videos" in reproduce.DRAW["table1"](tmp_path, "test", tmp_path)


def test_fast_scenes_are_compared_with_the_truth_and_give_no_pictures(tmp_path):
    for arm, bend in (("cam-shipped", 5.0), ("none", 9.0), ("rendering", 4.0)):
        write(tmp_path, "cam", arm, {"seam_bend": [bend] * 8}, speed="fast")
    text = reproduce.table_cam(tmp_path, "test", tmp_path)
    assert "never saw such speeds" in text and "less rendering, same videos" in text
    assert "+1.00 [+1.00, +1.00] |" in text, "a difference to the truth is no verdict"
    assert figures.pictured(tmp_path, "cam", "test") is None
    write(tmp_path, "cam", "none", {"seam_bend": [1.0]})
    assert not figures.pictured(tmp_path, "cam", "test").fast


def test_long_videos_have_a_table_of_what_is_left(tmp_path):
    for arm, kept in (("full", 1.0), ("no_apm", 0.0), ("last_frame_clip", 0.0), ("rendering", 1.0)):
        values = {"end_pattern_kept": [kept] * 8, "drift_colour_signed_share": [0.1] * 8}
        write(tmp_path, "long", arm, values, frames=240)
    text = reproduce.DRAW["table-long"](tmp_path, "test", tmp_path)
    assert "less full, same videos" in text and text.count("-100 % [-100, -100] (worse)") == 2
    assert "colour drift" in text and "10.0 % [10.0, 10.0]" in text


def test_floors_compare_with_the_readers_ceiling(tmp_path):
    folder = tmp_path / "results"
    part = {"right_colour": [1.0] * 19 + [0.0], "right_shape": [1.0] * 10 + [0.0] * 10}
    write(folder, "first-chunk", "generated", part, frames=16)
    write(folder, "first-chunk", "rendering", {"right_colour": [1.0] * 20, "right_shape": [1.0] * 20}, frames=16)
    write(folder, "cam", "full-shipped", {"seam_residual": [0.1, 0.2, 0.15]})
    rows = {r[0]: r for r in floors_table.first_chunk(folder, "test") + floors_table.seams(folder, "test")}
    assert rows["first chunk: colour"][3] == "yes" and rows["first chunk: shape"][3] == "no"
    assert rows["seam residual with CAM"][3] == "yes"
    text = floors_table.floors(folder, "test", tmp_path)
    assert "motion kept" in text and "not run" in text


def test_every_drawing_works_without_results(tmp_path, capsys):
    assert cli.main(["reproduce", "all", "--results", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not run") > 10
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"floors.md", "table-cam.md", "table-apm.md", "fig4.md", "fig12.md", "fig14.md"} <= names


def test_a_suite_without_results_is_one_line_until_it_has_some(results, tmp_path):
    empty = reproduce.DRAW["table-cam"](tmp_path / "none", "test", tmp_path)
    assert "|" not in empty and empty.count("not run") == 3, "a line for cam, cam-condition and cam-hidden"
    assert "`st2v evaluate cam --split test` makes" in empty and "full_run --plan" in empty
    assert "hours on one CPU core" in empty and "add_cond: SCuts 0.284" in empty
    for what in ("fig4", "fig12", "fig14", "stability"):
        assert "![" not in reproduce.DRAW[what](tmp_path / "none", "test", tmp_path)
    assert not list(tmp_path.glob("*.png"))
    text = reproduce.DRAW["table-cam"](results, "test", tmp_path)
    assert "| cam " in text and "**cam: not run.**" not in text and "**cam-condition: not run.**" in text


def test_what_a_suite_takes():
    for name, suite in SUITES.items():
        videos, words, trains = waiting.cost(name)
        assert videos == suite.videos * len(suite.arms) and words.startswith("about") and trains == bool(suite.trained)


def test_pictures_and_curves_are_drawn(tmp_path):
    import cv2

    folder, out = tmp_path / "results", tmp_path / "out"
    out.mkdir()
    curve = {"frames": [120, 240], "mawe_code": [1.0, None], "clip_score": [30.0, 31.0]}
    curve |= {"pattern_error": [0.0, 0.1], "shade_error": [0.0, 0.2]}
    write(folder, "long", "full", {"motion": [1.0, 2.0]}, frames=240, details=[curve, curve])
    text = reproduce.figures.stability(folder, "test", out)
    assert "43.25" in text and (out / "stability-0.png").stat().st_size > 5000
    for arm in ("B", "code"):
        pictures = [{"xt": f"{arm}.png", "xt_truth": f"{arm}.png"}]
        write(folder, "blending", arm, {"psnr": [1.0]}, pictures=pictures)
        cv2.imwrite(str(folder / "blending" / f"{arm}.png"), np.full((24, 128, 3), 90, np.uint8))
    text = reproduce.figures.fig4(folder, "test", out)
    assert "not run: B+S" in text and (out / "fig4.png").stat().st_size > 5000


def test_motion_stands_beside_the_seams(results, tmp_path):
    write(results, "cam", "rendering", {"seam_bend": [0.1] * 20, "motion_over_true": [1.0] * 20})
    text = figures.motion(results, "test", tmp_path)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert {"none", "cam", "add_cond", "rendering"} <= set(rows) and "1.00 [1.00, 1.00]" in rows["rendering"]
    assert "–" in rows["none"], "an arm without the value says so"
    assert (tmp_path / "motion-0.png").stat().st_size > 5000


def test_the_command_line_names_what_exists(tmp_path, capsys):
    assert set(cli.SUITES) == set(SUITES)
    assert set(cli.DRAWINGS) == set(reproduce.DRAW)
    (tmp_path / "file").write_text("")
    assert cli.main(["reproduce", "fig4", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_numbers_are_shown_in_three_digits():
    assert show(Interval(0.12345, 0.1, 0.2, 9)) == "0.123 [0.100, 0.200]"
    assert show(Interval(0.5, 0.25, 0.75, 9), percent=True) == "50.0 % [25.0, 75.0]"
    assert show(Interval(float("nan"), 0, 0, 0)) == "–"


def test_the_full_run_plans_every_arm_once_and_uses_what_it_trains(tmp_path):
    from pathlib import Path

    from st2v_lib.evaluation import full_run

    weights, arms = Path("data/weights/tiny"), tmp_path / "arms"
    commands = full_run.training(weights, arms, 0.01)
    parser = cli.build_parser()
    parsed = [parser.parse_args(c) for c in commands]
    assert len({p.out for p in parsed}) == len(parsed)
    assert {p.phase for p in parsed} >= {"cam", "apm", *cli.ARMS}
    assert all(p.source == weights or p.source in {q.out for q in parsed} for p in parsed)
    assert [p.source.name for p in parsed if p.phase == "apm"] == [f"cam-160-{s}" for s in (0, 1, 2)]
    used = set()
    for command in full_run.evaluation(weights, arms, tmp_path, "test", 0.01):
        used |= set(parser.parse_args(command).arms)
    assert used == {p.out for p in parsed}
    assert not full_run.trained_already(commands[0])
    parsed[0].out.mkdir(parents=True)
    (parsed[0].out / "arm.json").write_text('{"clips": 160}')
    assert full_run.trained_already(commands[0])


def test_table1_names_mechanisms_and_rows_without_an_arm(results):
    text = reproduce.DRAW["table1"](results, "test", results)
    assert "SEINE: MAWE 718.9" in text and "Open-Sora v1.2" in text and "no way to carry a video on" in text
    assert "**long: not run.**" in text and "higher CLIP score than addition: **not run**" in text
    write(results, "long", "full", {"mawe_code": [1.0] * 9, "scuts": [0.0] * 9}, frames=240)
    write(results, "long", "last_frame_clip", {"mawe_code": [2.0] * 9, "scuts": [0.0] * 9}, frames=240)
    text = reproduce.DRAW["table1"](results, "test", results)
    assert "lower MAWE than last-frame CLIP (SVD, DynamiCrafter-XL, I2VGen-XL): **agrees**" in text


def test_the_overview_lists_what_was_run_and_counts_claims(results):
    text = reproduce.DRAW["overview"](results, "test", results)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["cam", "7", "3", "20", ""] in rows
    assert any(
        row[1] == "smoother joints with CAM than without memory" and row[5:] == ["agrees", "3 of 3"] for row in rows
    )
    assert {row[0] for row in rows if row[1].startswith("smoother joints")} == {"ours"}
    assert {row[0] for row in rows if row[1].startswith("fewer cuts with CAM")} == {"CAM, §5.3"}
    assert "2 agrees; 0 does not agree; 1 tie; 0 too few; 34 not run" in text


def test_headline_tables_take_plain_scenes_and_the_largest_budget(results):
    write(results, "cam", "cam_x", {"seam_bend": [0.0, 1.0]}, training=trained("cam", 0, clips=1000))
    (group,) = plain(groups(results, "cam", "test"))
    assert group.budget == 4000


def test_an_arm_alone_is_no_comparison(tmp_path):
    """A few very long videos of one arm have their table, and no claims that nobody asked of them."""
    for arm in ("full", "none"):
        write(tmp_path, "long", arm, {"clip_score": [1.0] * 8}, frames=240)
    write(tmp_path, "long", "full", {"clip_score": [1.0] * 6}, seed=1, frames=1200)
    found = groups(tmp_path, "long", "test")
    assert [len(g.rows) for g in found] == [2, 1] and comparable(found) == found[:1]


def test_each_training_seed_can_be_seen_alone(results):
    (group,) = groups(results, "cam", "test")
    text = by_training_seed(group, ("none", "add_cond", "cam"), CAM_COLUMNS[0], "cam")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "none" not in rows and "spread 0" in rows["cam"]
    assert "one sign in 3 of 3" in rows["add_cond less cam"] and rows["add_cond less cam"].count("+1.00 [") == 3
    assert signs(group, "cam", "none", "seam_bend") == "3 of 3", "an arm without training stands beside each seed"
    assert signs(group, "none", "none", "seam_bend") == ""
    write(results, "cam", "add_x", {"seam_bend": [0.0] * 20}, training=trained("add_cond", 3))
    (group,) = groups(results, "cam", "test")
    text = by_training_seed(group, ("add_cond", "cam"), CAM_COLUMNS[0], "cam")
    assert "training seed 3" in text and "one sign in 3 of 3" in text, "a seed that only one arm has is not compared"
    assert "not run" in by_training_seed(group, ("none",), CAM_COLUMNS[0], "cam")


def test_stability_is_compared_on_the_same_videos_and_seeds_are_averaged_first(tmp_path):
    for seed in (0, 1):
        details = [
            {"frames": [120, 220], "mawe_code": [v + seed, v + seed + 3], "clip_score": [30.0, None],
             "pattern_error": [0.0, 0.0], "shade_error": [0.0, 0.0]}
            for v in (1.0, 5.0, 2.0, 2.0, 2.0, 2.0)
        ]  # fmt: skip
        write(tmp_path, "long", "full", {"motion": [1.0] * 6}, seed=seed, frames=240, details=details)
    (group,) = groups(tmp_path, "long", "test")
    curve = figures.curve_of(group.rows["full"])
    assert curve[120]["mawe_code"] == {0: 1.5, 1: 5.5} | dict.fromkeys(range(2, 6), 2.5)
    text = figures.changes({"full": curve})
    assert "220 less 120" in text and "+3.00 [+3.00, +3.00] (worse)" in text and "MAWE +2.59, CLIP -0.66" in text


def test_strips_say_what_the_reader_made_of_them(tmp_path):
    pictures = [{"strip": "a.png"}, {}]
    values = {"counts": [1.0, 0.0], "returned": [1.0, None], "waiting": [4.0, None], "pattern_kept": [0.0, None]}
    write(tmp_path, "apm", "apm", values, frames=72, pictures=pictures)
    (group,) = groups(tmp_path, "apm", "test")
    text = figures.read_of_strips(group, ("apm", "alpha0"))
    assert "| apm | 0     | p      | 1      | 1        | 4             | 0            |" in text
    assert figures.read_of_strips(None, ("apm",)) == ""


def test_fig14_shows_a_case_that_counts(tmp_path):
    for arm, counts in (("apm", [0.0, 1.0]), ("apm_null", [0.0, 0.0])):
        pictures = [{"strip": f"{arm}-{i}.png"} for i in (0, 1)]
        write(tmp_path, "apm", arm, {"counts": counts}, frames=72, pictures=pictures)
    (group,) = groups(tmp_path, "apm", "test")
    assert figures.that_counts(group, ("apm", "apm_null")) == 1
    assert figures.that_counts(None, ("apm",)) == 0
    assert figures.pictures_of(group, "apm", "strip", 1) == ["apm-1.png"]
    assert figures.pictures_of(group, "apm", "strip") == ["apm-0.png", "apm-1.png"]


def test_hyperparameters_are_those_of_the_configs(tmp_path):
    text = reproduce.DRAW["table12"](tmp_path, "test", tmp_path)
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines()
            if line.startswith("|")}  # fmt: skip
    assert rows["β₀, β_T"] == ["0.0085, 0.012", "0.00085, 0.012 *", "0.00085, 0.012"]
    assert rows["guidance, text"][1] == "7.5" and rows["pixels, stage 3"][1:] == ["720", "128"]
