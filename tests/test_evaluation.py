"""Fair tests: cases are what they claim, noise belongs to videos, runs resume and do not depend on the processes."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from processes import run_as_ranks

from st2v_lib import cli
from st2v_lib.config import TINY
from st2v_lib.errors import InputError, UserError
from st2v_lib.evaluation import apm, blending, cam, cases, scoring
from st2v_lib.evaluation import cli as evaluate_cli
from st2v_lib.evaluation.cam import SUITE as CAM
from st2v_lib.evaluation.first_chunk import SUITE as FIRST
from st2v_lib.evaluation.generate import base_chunks, continue_videos, models_of, noise_of, video_seed
from st2v_lib.evaluation.results import Run, read_result
from st2v_lib.evaluation.runner import evaluate, jobs_of, made_with, used
from st2v_lib.evaluation.suite import Arm, Options, Scored, trained_arm
from st2v_lib.loading import load
from st2v_lib.loading import write_index as write_pipeline_index
from st2v_lib.manifest import write_manifest
from st2v_lib.sampling import make_scheduler
from st2v_lib.world.reader import Reader, Reading, save_reader
from st2v_lib.world.render import render
from st2v_lib.world.scene import positions


@pytest.fixture(scope="module")
def folder(random_weights, quick_config, tmp_path_factory):
    """Random weights of two steps, with a random reader, as a folder that ``load`` takes."""
    place = tmp_path_factory.mktemp("fair") / "tiny"
    shutil.copytree(random_weights / "weights" / "tiny", place)
    torch.manual_seed(0)
    save_reader(Reader(), place / "reader")
    write_pipeline_index(place, quick_config)
    write_manifest(place)
    return place


@pytest.fixture(scope="module")
def pipe(folder):
    return load("tiny", "cpu", folder)


# ------------------------------------------------------------ the cases


def test_cases_depend_on_their_index_alone():
    a, b = (cases.any_case("dev", 3, 7) for _ in range(2))
    assert a == b and a != cases.any_case("dev", 4, 7)
    assert a.prompt != cases.any_case("test", 3, 7).prompt or a.scene != cases.any_case("test", 3, 7).scene
    frames = a.frames(70)
    assert frames.shape == (70, 3, 64, 64)
    torch.testing.assert_close(frames[66:], render(a.scene, 4, a.start + 66)[0])


@pytest.mark.parametrize("index", range(4))
def test_hidden_cases_hide_what_is_carried(index):
    case = cases.hidden_case("dev", index, apm.STREAM)
    _, truth = case.frames(48, truth="masks")
    seen = truth.visible[0, :, 0]
    assert seen[0] > 0.9, "the anchor shows it"
    assert seen[16:24].max() == 0, "the first generated frames, which the second chunk is given, do not"
    assert seen[24:].max() > 0.9, "and it comes back whole"
    assert case.motion in ("cross", "hide")


def test_visible_and_fast_cases():
    case = cases.visible_case("dev", 1, cam.STREAM, sprites=2)
    assert (cases.visible_shares(case.scene, 1, case.start) > 0.95).all() and len(case.scene.sprites) == 2
    for index in range(2):
        fast = cases.visible_case("dev", index, 8, speed="fast")
        steps = torch.diff(positions(fast.scene.sprites[0], torch.arange(100)), dim=0).norm(dim=-1) * 64
        assert steps.median() > 8, "more than one latent cell a frame"
    with pytest.raises(InputError, match="speed"):
        cases.any_case("dev", 0, 7, speed="warp")


# ------------------------------------------------------------ scores with known answers


def reading(count, pattern=0, **changes):
    """A reading of one centred sprite where ``count`` is 1."""
    f = len(count)
    count = torch.tensor(count)
    seen = torch.stack([count > 0, torch.zeros(f, dtype=torch.bool)], 1)
    fill = lambda *shape: torch.zeros(f, *shape)  # noqa: E731
    one_hot = fill(2, 4)
    one_hot[..., pattern] = 1
    nan = torch.where(seen, 0.5, torch.nan)
    values = dict(
        positions=nan[..., None].expand(f, 2, 2), confidence=seen.float(), shape=one_hot, colour=fill(2, 6),
        pattern=torch.where(seen[..., None], one_hot, torch.nan), size=0.3 * seen, shade=nan, visible=seen.float(),
        background=fill(4), background_colour=fill(6), background_shade=fill(), pillar=fill(), count=count,
    )  # fmt: skip
    return Reading(**{**values, **changes})


def test_return_waiting_time_and_identity_given_return():
    seams = [16, 24, 32, 40]
    anchor = reading([1] * 16)
    back = reading([1] * 10 + [0] * 17 + [1] * 21)
    found = apm.returned(back, anchor, seams)
    assert (found["counts"], found["returned"], found["blank_until"], found["waiting"]) == (1, 1, 24, 3)
    assert found["pattern_kept"] == 1 and found["shade_error"] == 0
    other = apm.returned(reading([1] * 10 + [0] * 17 + [1] * 21, pattern=2), anchor, seams)
    assert other["pattern_kept"] == 0 and other["pattern_error"] == 1
    never = apm.returned(reading([1] * 10 + [0] * 38), anchor, seams)
    assert never["returned"] == 0 and math.isnan(never["pattern_kept"]), "what never came back has no identity"
    flicker = apm.returned(reading([1] * 10 + [0] * 17 + [1] + [0] * 20), anchor, seams)
    assert flicker["returned"] == 0, "one frame alone is no return"
    stayed = apm.returned(reading([1] * 48), anchor, seams)
    assert stayed["counts"] == 0 and math.isnan(stayed["returned"]), "a sprite that never left is no case"


def test_correlation_of_fine_detail():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 16, 16, generator=g)
    assert blending.correlation(a, 2 * a + 1) == pytest.approx(1)
    assert blending.correlation(a, -a) == pytest.approx(-1)
    assert math.isnan(blending.correlation(a, torch.ones_like(a)))
    coarse = torch.nn.functional.interpolate(torch.rand(1, 3, 2, 2, generator=g), 32, mode="bilinear")
    assert blending.high_pass(coarse).abs().mean() < 0.1 * blending.high_pass(torch.rand(1, 3, 32, 32)).abs().mean()


def test_a_jump_at_seams_is_seen_with_its_size():
    path = torch.full((40, 2, 2), torch.nan)
    path[:, 0] = torch.stack([torch.arange(40) / 100, torch.full((40,), 0.5)], -1)
    path[16:, 0, 1] += 4 / 64
    jumped = reading([1] * 40, positions=path)
    values = scoring.seam_values(jumped, [16, 24])
    assert values["seam_bend"] == pytest.approx(2, abs=0.01), "4 px at one of two seams"
    assert values["inside_bend"] == pytest.approx(0, abs=1e-3) and values["seams_read"] == 1
    assert scoring.speed(jumped, 20, 40) == pytest.approx(0.64, abs=0.01)


def test_jitter_between_seams_is_no_smooth_joint():
    path = torch.full((40, 2, 2), torch.nan)
    path[:, 0] = torch.stack([torch.arange(40) / 100, torch.full((40,), 0.5)], -1)
    path[16:, 0] += torch.randn(24, 2, generator=torch.Generator().manual_seed(0)) / 64  # true until frame 15
    shaky = reading([1] * 40, positions=path)
    values, diluted = scoring.seam_values(shaky, [24, 32], start=16), scoring.seam_values(shaky, [24, 32])
    assert values["seam_bend"] > 2 and values["inside_bend"] > 2 and abs(values["seam_residual"]) < 1
    assert diluted["inside_bend"] < values["inside_bend"] - 1, "true frames make what is inside look smooth"


# ------------------------------------------------------------ noise and batches


def test_noise_belongs_to_the_video(pipe):
    seeds = [video_seed(0, i) for i in (4, 5)]
    models = models_of(pipe)
    both, added = noise_of(models, pipe.cfg, seeds, 2)
    alone, alone_added = noise_of(models, pipe.cfg, seeds[1:], 2)
    assert torch.equal(both[1:], alone) and torch.equal(added[:, 16:], alone_added)
    models = dataclasses.replace(models, scheduler=make_scheduler(pipe.cfg.scheduler, "dpm++"))
    assert noise_of(models, pipe.cfg, seeds, 2)[1] is None
    assert not torch.equal(both[0], both[1]) and video_seed(1, 4) not in seeds


@pytest.mark.parametrize("sampler", ["dpm++", "sde-dpm++"])
def test_a_video_does_not_depend_on_its_batch(pipe, sampler, monkeypatch):
    """Stochastic steps included: each video draws its own noise."""
    sampling = dataclasses.replace(pipe.cfg.sampling, sampler=sampler, eta=1.0)
    monkeypatch.setattr(pipe, "cfg", pipe.cfg.replace(sampling=sampling))
    batch = [cases.visible_case("dev", i, 8) for i in range(2)]
    seeds, prompts = [5, 6], [c.prompt for c in batch]
    first = base_chunks(pipe, prompts, seeds)
    torch.testing.assert_close(first[1:], base_chunks(pipe, prompts[1:], seeds[1:]), atol=1e-4, rtol=1e-4)
    both = continue_videos(pipe, prompts, first, seeds, 28, overlaps=True)
    alone = continue_videos(pipe, prompts[1:], first[1:], seeds[1:], 28)
    assert both.video.shape == (2, 28, 3, 64, 64) and both.seams == [16, 24]
    torch.testing.assert_close(both.video[1:], alone.video, atol=1e-3, rtol=1e-3)
    assert [tuple(t.shape) for t in both.discarded] == [(2, 8, 3, 64, 64)] * 2
    torch.testing.assert_close(both.carried[1], both.video[:, 16:24])


def test_last_frame_clip_follows_from_the_first_generated_chunk_on(folder):
    pipe = load("tiny", "cpu", folder)
    pipe.cfg = pipe.cfg.replace(anchor="last")
    case = cases.visible_case("dev", 0, 8)
    first, anchors = base_chunks(pipe, [case.prompt], [5]), []
    continue_videos(pipe, [case.prompt], first, [5], 28, before=lambda state: anchors.append(state) or state)
    models = pipe.models()
    for state in anchors:
        expected = models.apm(pipe.encode_image(state.cond[:, -1:]))
        torch.testing.assert_close(state.anchor, expected)


# ------------------------------------------------------------ runs and processes

ARMS = ("full-shipped", "none")


def run(folder, results, videos, names=ARMS, **options):
    arms = [a for a in CAM.arms if a.name in names]
    return evaluate(
        CAM, arms, "dev", videos, [0], Options(frames=24), folder, results, device="cpu", batch=1, **options
    )


def numbers(path: Path) -> list:
    content = read_result(Path(path))
    for video in content["videos"]:
        del video["seconds"], video["values"]["seconds_per_chunk"]
    return content["videos"]


def test_the_type_of_numbers_is_part_of_a_run(folder, tmp_path):
    (file,) = run(folder, tmp_path, 1, ("none",), dtype=torch.bfloat16)
    assert json.loads(file.read_text())["identity"]["dtype"] == "torch.bfloat16"
    with pytest.raises(UserError, match="other dtype"):
        run(folder, tmp_path, 1, ("none",))


def test_a_run_writes_resumes_and_skips(folder, tmp_path, monkeypatch, capsys):
    first = run(folder, tmp_path, videos=1)
    assert "about" in capsys.readouterr().out, "an estimate comes first"
    content = read_result(first[0])
    assert {"identity", "made_with", "videos", "seconds"} <= content.keys()
    assert {"weights_sha256", "config", "seed", "split"} <= content["identity"].keys()
    assert "/" not in json.dumps(content["made_with"]), "no path of this machine"
    assert (first[0].parent / content["videos"][0]["pictures"]["xt"]).is_file()
    values = content["videos"][0]["values"]
    names = {"seam_residual", "inside_bend", "overlap_psnr", "scuts", "motion_over_true", "speed_over_true"}
    assert names <= values.keys() and values["cuts_per_100_seams"] == 100 * values["scuts"], "one seam"
    assert values["gflop_per_frame"] > 0

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr("st2v_lib.evaluation.runner.run_job", fail)
    assert run(folder, tmp_path, videos=1) == first, "nothing is left to do"
    assert not capsys.readouterr().out


def run_of_three(folder, results):
    run(folder, results, 3, ("full-shipped",))  # an odd number: one process has more to do


def test_two_processes_give_the_numbers_of_one(folder, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run(folder, tmp_path / "one", 3, ("full-shipped",))
    finally:
        torch.set_num_threads(threads)
    run_as_ranks(run_of_three, folder, tmp_path / "two")
    for path in alone:
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert json.loads(other.read_text())["made_with"][0]["processes"] == 2
        assert numbers(path) == numbers(other)


def test_jobs_are_what_is_missing_once_each(tmp_path):
    runs = []
    for name in "ab":
        done = Run(tmp_path, name, {})
        done.videos = {0: {}, 1: {}, 4: {}}
        runs.append((Arm(name), 0, done))
    jobs = jobs_of(runs, 10, 4)
    assert [j.indices for j in jobs] == [[2, 3], [5, 6, 7], [8, 9]] * 2
    shares = [jobs[rank::2] for rank in range(2)]
    assert sorted(i for share in shares for j in share if j.arm.name == "a" for i in j.indices) == [2, 3, 5, 6, 7, 8, 9]


def test_other_weights_are_not_mixed_into_a_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("st2v_lib.evaluation.runner.probe", lambda *_: 1.0)  # how long it would take is not asked
    suite = dataclasses.replace(FIRST, run=lambda bench, found, seeds: [Scored({"x": 1.0}) for _ in found])
    go = lambda place: evaluate(suite, suite.arms[:1], "dev", 2, [0], Options(), place, tmp_path / "r", device="cpu")  # noqa: E731
    go(folder)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    save_reader(Reader(), other / "reader")
    write_manifest(other)
    with pytest.raises(UserError, match="other weights_sha256"):
        go(other)


def test_a_run_depends_on_the_parts_that_it_uses():
    cfg = TINY
    parts = ("unet", "cam", "apm", "add_cond", "reader")
    assert used(parts, cfg) == ["unet", "cam", "apm", "reader"]
    assert used(parts, cfg.replace(apm=None)) == ["unet", "cam", "reader"]
    assert used(parts, cfg.replace(apm=None, conditioning="none")) == ["unet", "reader"]
    assert used(parts, cfg.replace(conditioning="add_cond")) == ["unet", "apm", "add_cond", "reader"]
    assert used(parts, cfg.replace(apm=None, conditioning="cam+replacement")) == ["unet", "cam", "reader"]


def test_arms_without_weights_and_of_other_bases_are_refused(folder, tmp_path):
    rival = Arm("add", {"conditioning": "add_cond"})
    with pytest.raises(UserError, match="st2v train add_cond"):
        evaluate(CAM, [rival], "dev", 1, [0], Options(), folder, tmp_path, device="cpu")
    with pytest.raises(UserError, match="is no arm"):
        trained_arm(folder)
    arm = tmp_path / "arm"
    shutil.copytree(folder, arm)
    record = {"arm": "apm_null", "phase": "apm", "seed": 1, "clips": 8, "options": {"null_anchor": True}}
    (arm / "arm.json").write_text(json.dumps(record))
    found = trained_arm(arm)
    assert found.name == "apm_null-clips8-train1" and found.how == {"anchor": "null"} and "apm" not in found.changes
    record |= {"arm": "apm", "options": {}}
    (arm / "arm.json").write_text(json.dumps(record))
    own, off = evaluate_cli.arms_of(dataclasses.replace(apm.SUITE, arms=()), [arm], None)
    assert (own.name, off.name) == ("apm-clips8-train1", "apm_alpha0-clips8-train1")
    assert off.changes == {"conditioning": "cam", "apm": None} and off.record["arm"] == "apm_alpha0"
    assert off.folder == own.folder and own.record["arm"] == "apm" and "apm" not in own.changes
    record |= {"arm": "apm_null", "options": {"null_anchor": True}}
    (arm / "arm.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="none of cam's"):
        evaluate_cli.arms_of(CAM, [arm], None)
    assert [a.name for a in evaluate_cli.arms_of(apm.SUITE, [arm], ["apm_null", "with"])] == ["with", found.name]
    with pytest.raises(UserError, match="has no arm"):
        evaluate_cli.arms_of(apm.SUITE, [arm], ["magic"])
    record |= {"arm": "apm_unet", "options": {"train_unet": True}}
    (arm / "arm.json").write_text(json.dumps(record))
    assert [a.record["arm"] for a in evaluate_cli.arms_of(apm.SUITE, [arm], None)[-2:]] == [
        "apm_unet",
        "apm_unet_alpha0",
    ]
    found.record["base_sha256"] = "of another"  # its own UNet may have trained on: where it started is what counts
    with pytest.raises(UserError, match="another base model"):
        evaluate(apm.SUITE, [found], "dev", 1, [0], Options(), folder, tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cam", "--prompts", "0"], "--prompts"),
        (["cam", "--batch", "0"], "--batch"),
        (["cam", "--frames", "8"], "16 or more"),
        (["cam", "--seeds", "1", "1"], "different"),
        (["first-chunk", "--frames", "32"], "a first chunk has 16"),
        (["apm", "--sprites", "2"], "one sprite"),
        (["apm", "--frames", "32"], "48"),
        (["cam", "--frames", "16"], "true frames"),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments, says, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_cli, "evaluate", None)
    assert cli.main(["evaluate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_what_a_result_was_made_with():
    found = made_with("cpu", 4, 2)
    assert found["processes"] == 2 and "CPU threads" in found["device"] and found["torch"] == torch.__version__
