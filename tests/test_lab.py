"""The ablation lab without a kernel: its state, its runs, its records and its panel."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from st2v_lib.blending import LAWS, NAIVE, stage_key
from st2v_lib.config import TINY
from st2v_lib.enhancer import enhance_latents
from st2v_lib.errors import InputError, OutputError
from st2v_lib.notebook import lab_record, lab_run, lab_views
from st2v_lib.notebook.lab_batch import enhance_steps
from st2v_lib.notebook.lab_bench import Bench, models_of, sampling_of, scene_of
from st2v_lib.notebook.lab_panel import LabPanel
from st2v_lib.notebook.lab_score import SHOWN
from st2v_lib.notebook.lab_state import (
    SWITCHES,
    Arm,
    LabState,
    check,
    found_weights,
    no_scene,
    problems,
    snippet,
    why_not,
)
from st2v_lib.streaming import next_chunk, start_stream

FOUND = frozenset({"cam", "apm", "enhancer"})
QUICK = LabState(Arm(steps=2, enhancer_steps=2), frames=24)
OTHER = "a blue star orbits over yellow dots"


@pytest.fixture(scope="module")
def bench(random_weights):
    """Random weights with both memories awake; no reader, no CLIP."""
    from st2v_lib import load

    folder = random_weights / "weights" / "tiny"
    torch.manual_seed(0)
    return Bench(load("tiny", device="cpu", folder=folder), folder=folder)


@pytest.fixture(scope="module")
def result(bench):
    return lab_run.run(QUICK, bench)


# ------------------------------------------------------------------------------------------------------------- state


def test_the_ablated_arm_follows_the_baseline_but_for_its_changes():
    state = LabState(Arm(seed=3), {"guidance": 1.0})
    moved = state.set(prompt=OTHER, seed=5, frames=24)
    assert moved.ablated == dataclasses.replace(moved.baseline, guidance=1.0)
    assert (moved.baseline.prompt, moved.ablated.seed, moved.frames) == (OTHER, 5, 24)
    assert moved.set(guidance=1.0).changes == {}
    assert state.ablate(guidance=3.0).changes == {}


@pytest.mark.parametrize("state", [LabState(), QUICK, LabState(Arm(prompt=OTHER), {"steps": 3, "apm": "off"}, 2, 32)])
def test_the_snippet_makes_the_state_again(state, monkeypatch):
    monkeypatch.setattr(lab_run, "run", lambda s: s)
    names: dict = {}
    exec(snippet(state), names)
    assert names["result"] == state and names["state"].key() == state.key()


def test_the_snippet_names_the_config_of_a_pipeline():
    assert snippet(LabState()).endswith('pipe.cfg.replace(apm=None, conditioning="none")')
    assert 'replace(anchor="last")' in snippet(LabState(changes={"apm": "last"}))
    assert 'replace(conditioning="cam+replacement")' in snippet(LabState(changes={"paste": "on"}))
    assert 'conditioning="replacement")' in snippet(LabState(Arm(conditioning="none", apm="off"), {"paste": "on"}))
    assert "pipe.cfg" not in snippet(LabState(changes={"steps": 3}))
    rival = snippet(LabState(changes={"conditioning": "add_cond", "apm": "off"}))
    assert "pipe.cfg" not in rival and "arms/add_cond" in rival


@pytest.mark.parametrize(
    "name, value, arm, says",
    [
        ("conditioning", "add_cond", Arm(apm="off"), "no trained weights shipped; st2v train"),
        ("conditioning", "none", Arm(), "switch the long-term memory off first"),
        ("conditioning", "none", Arm(apm="off"), None),
        ("conditioning", "cam", Arm(apm="off"), None),
        ("apm", "first", Arm(conditioning="none", apm="off"), "never beside 'none'"),
        ("apm", "grey", Arm(), None),
        ("anchor_weight", 2.0, Arm(apm="off"), "no anchor to weigh"),
        ("anchor_weight", 2.0, Arm(), None),
        ("steps", 0, Arm(), "from 1 to 50"),
        ("steps", 2.5, Arm(), "whole number"),
        ("guidance", 2.5, Arm(), None),
        ("blend_law", "B", Arm(), "it belongs to stage 3"),
        ("prompt", " ", Arm(), "empty"),
        ("sampler", "euler", Arm(), "not one of"),
    ],
)
def test_what_is_impossible_says_why(name, value, arm, says):
    reason = why_not(LabState(), name, value, arm, FOUND)
    assert reason is None if says is None else says in reason


def test_stage_3_has_switches_of_its_own():
    state = LabState(changes={}, stage=3)
    assert why_not(state, "blend_law", "B", Arm(), FOUND) is None
    assert "stage 2" not in why_not(state, "overlap", 12, Arm(chunk=12), FOUND)
    assert "belongs to stage 2" in why_not(state, "apm", "off", Arm(), FOUND)
    assert LabState().set(stage=3).changes == {} and LabState(changes={"seed": 2}).set(stage=3).changes == {"seed": 2}
    assert "no trained enhancer" in why_not(state, "blend_law", "B", Arm(), FOUND - {"enhancer"})


def test_all_problems_are_told_before_anything_runs(bench):
    state = LabState(Arm(prompt="two ships"), {"conditioning": "add_cond", "steps": 99}, frames=17)
    with pytest.raises(InputError) as error:
        next(lab_run.run_steps(state, bench))
    for part in ("frames", "one sprite", "no trained weights", "from 1 to 50"):
        assert part in str(error.value)
    assert "no switch colour" in problems(LabState(changes={"colour": 1}), FOUND)[0]
    assert "stage: expected 2 or 3" in problems(LabState(stage=1), FOUND)[0]
    assert "belongs to stage 3" in problems(LabState(changes={"blend_law": "B"}), FOUND)[0]
    assert problems(LabState(Arm(anchor_weight=2.0), {"apm": "off"}), FOUND) == []
    assert problems(LabState(), FOUND) == [] and check(LabState(), FOUND) == LabState()


def test_trained_arms_are_found_by_their_config(tmp_path):
    for name in ("cam", "arms/add_cond", "arms/half"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("cam", "arms/add_cond"):
        (tmp_path / name / "config.json").write_text("{}")
    assert found_weights(tmp_path) == {"cam", "add_cond"}
    assert why_not(LabState(), "conditioning", "add_cond", Arm(apm="off"), found_weights(tmp_path)) is None


def test_a_scene_is_what_the_prompt_says():
    scene = scene_of(Arm(prompt=OTHER, seed=4)).scene
    sprite = scene.sprites[0]
    assert (sprite.colour, sprite.shape, scene.motion) == ("blue", "star", "orbit")
    assert (scene.background.kind, scene.background.colour) == ("dots", "yellow")
    assert scene_of(Arm(prompt=OTHER, seed=4)) == scene_of(Arm(prompt=OTHER, seed=4))
    assert no_scene("a red star orbits over red dots") and no_scene("a cat") and no_scene(OTHER) is None


# --------------------------------------------------------------------------------------------------------------- run

PAIRS = {
    "memories": {"conditioning": "none", "apm": "off"},
    "no APM": {"apm": "off"},
    "grey anchor": {"apm": "grey"},
    "last frame": {"apm": "last"},
    "pasted": {"paste": "on"},
    "pasted without memory": {"paste": "on", "conditioning": "none", "apm": "off"},
    "guidance": {"guidance": 1.0},
    "three branches": {"anchor_weight": 2.0},
    "no APM, other guidance": {"apm": "off", "guidance": 2.0},
    "prompt and seed": {"prompt": OTHER, "seed": 7},
    "other steps": {"steps": 3},
    "other sampler": {"sampler": "ddim, eta 1"},
}


@functools.lru_cache
def alone(arm: Arm, bench: Bench, chunks: int) -> np.ndarray:
    """What the library's streaming loop makes of an arm by itself, from the first chunk of the default scene."""
    first = scene_of(Arm()).frames(16)[None]
    models, pipe = models_of(arm, bench), bench.pipe
    grey = torch.zeros_like(first[:, :1]) if arm.apm == "grey" else None
    state, blocks = start_stream(models, first, arm.seed, grey, 8), [first]
    for _ in range(chunks):
        block, state = next_chunk(models, state, pipe.encode_text(arm.prompt), pipe.encode_text(""), sampling_of(arm))
        blocks.append(block)
    return lab_run.as_frames(torch.cat(blocks, dim=1)[0])


@pytest.mark.parametrize("pair", PAIRS)
def test_each_arm_of_a_batch_is_what_the_loop_makes_of_it_alone(pair, bench):
    chunks = 2 if pair in ("memories", "last frame") else 1
    state = LabState(Arm(steps=2), PAIRS[pair], frames=16 + 8 * chunks)
    found = lab_run.run(state, bench)
    for who, arm in state.arms.items():
        want = alone(arm, bench, chunks).astype(int)
        assert np.abs(found.videos[who] - want).max() <= 2, who  # grey levels of 255
    assert (found.videos["baseline"][:16] == found.videos["ablated"][:16]).all()
    assert (found.videos["baseline"][16:] != found.videos["ablated"][16:]).any()


def test_equal_sampling_shares_the_batch_and_both_sample_eta_noise_of_their_own(bench):
    state = LabState(Arm(steps=2, sampler="ddim, eta 1"), {"seed": 1}, frames=24)
    found = lab_run.run(state, bench)
    for who, arm in state.arms.items():
        assert np.abs(found.videos[who] - alone(arm, bench, 1).astype(int)).max() <= 2
    assert lab_run._groups(list(state.arms.values()), [0, 1]) == [[0, 1]]


def test_without_changes_the_arms_are_the_same(bench):
    found = lab_run.run(QUICK.ablate(), bench)
    assert np.abs(found.videos["baseline"].astype(int) - found.videos["ablated"]).max() <= 1
    assert all(abs(v) < 0.05 or math.isnan(v) for v in found.differences().values())


@pytest.mark.parametrize("law", [*LAWS, *NAIVE])
@pytest.mark.parametrize("frames, chunk, overlap", [(24, 10, 4), (9, 12, 2), (13, 6, 0)])
def test_stage_3_in_steps_equals_the_library(law, frames, chunk, overlap):
    config = dataclasses.replace(
        TINY.enhancer, blend_law=law, chunk_frames=chunk, overlap_frames=overlap, num_inference_steps=3
    )
    x = torch.randn(1, 2, frames, 3, 3, generator=torch.Generator().manual_seed(1))
    denoise = lambda part, t, k: part.roll(1, dims=2) * 0.7 + 0.1 * k  # noqa: E731
    want = enhance_latents(x, denoise, config, torch.Generator().manual_seed(5))
    steps = enhance_steps(x, denoise, config, stage_key(torch.Generator().manual_seed(5)))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assert torch.equal(end.value, want)
            return


@pytest.mark.parametrize(
    "state",
    [
        QUICK,
        QUICK.ablate(steps=3).set(first="generated", frames=32),
        LabState(Arm(enhancer_steps=2, chunk=12, overlap=4), {"blend_law": "B", "overlap": 2}, 3, 24),
        LabState(QUICK.baseline, {"chunk": 16}, 3, 24, "generated"),
    ],
)
def test_a_tick_is_a_step_and_all_are_foreseen(state, bench):
    steps, ticks = lab_run.run_steps(state, bench), []
    while True:
        try:
            ticks.append(next(steps))
        except StopIteration as end:
            found = end.value
            break
    total, cost = lab_run.work(state)
    assert [t.done for t in ticks] == list(range(1, total + 1)) and {t.total for t in ticks} == {total} and cost > 2
    side = 64 if state.stage == 2 else bench.pipe.cfg.enhancer.size
    assert found.videos["ablated"].shape == (state.frames, side, side, 3)
    assert set(found.metrics["baseline"]) <= set(SHOWN)
    assert not any(module.training for module in (bench.pipe.unet, bench.pipe.enhancer))


def test_a_trained_rival_is_loaded_and_run(bench, tmp_path):
    from st2v_lib.baselines.add_cond import AddCond

    rival = AddCond.from_unet(bench.pipe.unet, TINY.cam, TINY.chunk_frames)
    for injector in rival.injectors:
        torch.nn.init.normal_(injector.layers[-1].weight, std=0.05)
    rival.half().save_pretrained(tmp_path / "arms" / "add_cond")
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "config.json").write_text("{}")
    own = Bench(bench.pipe, folder=tmp_path)
    state = LabState(Arm(steps=2, apm="off"), {"conditioning": "add_cond"}, frames=24)
    found = lab_run.run(state, own)
    for who, arm in state.arms.items():
        assert np.abs(found.videos[who] - alone(arm, own, 1).astype(int)).max() <= 2
    assert (found.videos["baseline"] != found.videos["ablated"]).any()


# ------------------------------------------------------------------------------------------------------------- files


def test_a_result_survives_its_file(result, tmp_path):
    lab_record.save(result, tmp_path, "one")
    (tmp_path / "broken.json").write_text("{}")
    again = lab_record.recorded(tmp_path)
    assert list(again) == ["one"] and again["one"].recorded
    assert again["one"].state == result.state and again["one"].seams == result.seams
    for who, video in result.videos.items():
        assert np.abs(again["one"].videos[who].astype(int) - video).mean() < 30  # noise compresses badly
        for name, value in result.metrics[who].items():
            assert again["one"].metrics[who][name] == pytest.approx(value, rel=1e-3, nan_ok=True)
    with pytest.raises(OutputError, match="--precompute"):
        lab_record.load(tmp_path / "broken.json")


def test_the_recorded_results_are_there_and_small():
    folder = lab_record.data_dir() / "results" / "lab"
    records = lab_record.recorded()
    assert set(records) == set(lab_run.RECORDED)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 300_000
    for name, state in lab_run.RECORDED.items():
        assert records[name].state.key() == state.key(), f"{name}: run lab_run --precompute"
        assert problems(state, found_weights()) == []


# ------------------------------------------------------------------------------------------------------------- views


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_pictures(result):
    pictures = lab_views.players(result)
    assert len(pictures) == 24 and opened(pictures[0]).size == (3 * 256 + 8, 256 + 18)
    assert opened(lab_views.slices(result, 0.3, 5)).size == (3 * 256 + 8, 4 * 24)
    assert opened(lab_views.curves(result)).width > 300
    still = lab_views.still(result, 18)
    assert opened(still).size[0] == 3 * 256 + 8 and opened(still).size[1] > 256 + 4 * 24 and len(still) < 80_000
    assert (lab_views.difference(result, 8) >= lab_views.difference(result)).all()
    page = lab_views.table(result)
    assert page.count("<tr>") >= 5 and "nan" not in page
    assert "training" in lab_views.changes(result.state) and "nothing" in lab_views.changes(QUICK.ablate())


# ------------------------------------------------------------------------------------------------------------- panel


@pytest.fixture
def panel(bench):
    return LabPanel(QUICK, bench, records={})


def test_a_control_changes_the_state_and_run_shows_a_new_video(panel):
    async def main():
        panel.controls.inputs["apm"].buttons["off"].click()
        panel.controls.inputs["steps"].value = 3
        assert panel.state.changes == {"conditioning": "none", "apm": "off", "steps": 3}
        assert "press <b>Run</b>" in panel.caption.value
        panel.run_button.click()
        task = panel.task
        assert panel.is_running and panel.start().task is task
        await asyncio.sleep(0.05)
        assert panel.run_button.disabled and not panel.stop_button.disabled
        assert await panel.finish() is panel.result

    asyncio.run(main())
    assert panel.result.state == panel.state and panel.progress.value == panel.progress.max
    assert "computed here" in panel.caption.value and not panel.run_button.disabled and panel.stop_button.disabled
    before = panel.picture.value
    panel.frame.value = 20
    assert panel.picture.value != before and opened(panel.picture.value).format == "PNG"
    before = panel.slices.value
    panel.row.value = 0.1
    assert panel.slices.value != before


def test_stop_is_heard_between_two_steps(panel):
    async def main():
        panel.set(steps=50).start()
        await asyncio.sleep(0.2)
        panel.stop_button.click()
        return await asyncio.wait_for(panel.finish(), 20)

    assert asyncio.run(main()) is None
    assert panel.result is None and "stopped" in panel.status.value and not panel.is_running
    assert 0 < panel.progress.value < panel.progress.max


def test_the_impossible_is_greyed_out_with_its_reason(panel):
    memory = panel.controls.inputs["conditioning"]
    assert memory.buttons["add_cond"].disabled and "no trained weights" in memory.buttons["add_cond"].tooltip
    assert "no trained weights" in panel.controls.why["conditioning"].value
    assert panel.controls.inputs["blend_law"].buttons["B"].disabled and panel.controls.inputs["chunk"].disabled
    assert memory.value == "none" and not memory.buttons["cam"].disabled
    memory.buttons["cam"].click()
    assert memory.buttons["cam"].button_style == "info" and not panel.controls.inputs["apm"].buttons["first"].disabled
    panel.controls.inputs["apm"].buttons["first"].click()
    assert panel.state.changes == {} and memory.buttons["none"].disabled
    panel.controls.stage.value = 3
    assert panel.state.stage == 3 and not panel.controls.inputs["blend_law"].buttons["B"].disabled


def test_what_cannot_be_run_disables_run_and_says_why(panel):
    panel.controls.editing.value = "baseline"
    panel.controls.inputs["prompt"].value = "a cat"
    assert panel.run_button.disabled and "one sprite" in panel.status.value
    panel.controls.first.value = "generated"
    assert not panel.run_button.disabled and panel.state.ablated.prompt == "a cat"
    assert "no word for: cat" in panel.status.value and "answer sooner" not in panel.status.value
    panel.set(frames=80, steps=30)
    assert "answer sooner" in panel.status.value


def test_an_error_is_told_and_raised(panel, monkeypatch):
    def broken(state, bench):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr("st2v_lib.notebook.lab_panel.run_steps", broken)

    async def main():
        await panel.start().finish()

    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(main())
    assert "out of memory" in panel.status.value and not panel.run_button.disabled


def test_recorded_results_are_shown_at_once(bench, result):
    record = dataclasses.replace(result, recorded=True, weights="other")
    panel = LabPanel(QUICK.ablate(guidance=1.0), bench, records={"memories": record})
    assert panel.result is None and not panel.picture.value
    panel.examples.value = "memories"
    assert panel.result is record and panel.picture.value and panel.state.key() == QUICK.key()
    assert "of other weights" in panel.caption.value
    bundle = panel._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"} <= set(bundle)


def test_every_switch_has_a_control(panel):
    assert set(panel.controls.inputs) == set(SWITCHES) == set(vars(Arm()))
