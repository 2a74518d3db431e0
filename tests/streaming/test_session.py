"""Sessions: what is on disk survives whatever happens, and going on gives the bytes of an uninterrupted run."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch

from st2v_lib import session as module
from st2v_lib.backbone import make_unet
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.errors import InputError, OutputError, UserError, WeightsError
from st2v_lib.loading import load
from st2v_lib.sampling import StepState
from st2v_lib.session import Block, Session, SessionError
from st2v_lib.video_io import probe, read_video, to_uint8

from .conftest import FRAMES, SEED, contents
from .micro import OTHER, PROMPT, write_micro


def low_of(blocks):
    return torch.cat([block.low for block in blocks], dim=1)


def video_of(blocks):
    return torch.cat([block.video for block in blocks], dim=1)


# ------------------------------------------------------------------------------------------------------- what it makes


def test_a_session_makes_the_pipelines_frames(pipe, whole):
    _, blocks, _ = whole
    low = torch.cat(list(pipe.stream(PROMPT, FRAMES, SEED, progress=False)), dim=1)
    assert torch.equal(low_of(blocks), low)
    assert torch.equal(video_of(blocks), torch.cat(list(pipe.enhance(low, PROMPT, SEED, progress=False)), dim=1))
    assert [block.low.shape[1] for block in blocks] == [16, 8, 8, 8, 4]
    assert sum(block.video.shape[1] for block in blocks[:-1]) > 0, "enhanced frames come while others are made"


def test_without_stage_3_each_chunk_is_handed_out_at_once(pipe, whole, tmp_path):
    session = Session.create(tmp_path / "s", pipe, PROMPT, 24, SEED, enhance=False)
    blocks = list(session.run())
    assert [block.video.shape[1] for block in blocks] == [16, 8] and session.is_done
    assert torch.equal(video_of(blocks), low_of(whole[1])[:, :24])
    assert torch.equal(session.low_frames(10, 20), low_of(whole[1])[:, 10:20])
    assert not list(tmp_path.glob("s/wavefront*"))


def test_without_end_then_with_one(pipe, whole, tmp_path):
    """A length that becomes known while it runs, or after it stopped, gives the frames of one known from the start."""
    for at in (24, 40):
        session = Session.create(tmp_path / str(at), pipe, PROMPT, None, SEED)
        blocks = []
        for block in session.run():
            blocks.append(block)
            if session.frames_made == at:
                assert session.end(FRAMES if at < FRAMES else None) == FRAMES
        assert session.is_done and torch.equal(video_of(blocks), video_of(whole[1]))
    with pytest.raises(InputError, match="has its length, 44"):
        session.end(80)
    session = Session.create(tmp_path / "after", pipe, PROMPT, None, SEED)
    blocks = []
    for block in session.run():
        blocks.append(block)
        if session.frames_made == 32:
            session.stop()
    assert session.frames_out < 32
    session.end()
    blocks += session.run()
    assert session.frames_out == 32 and blocks[-1].low.shape[1] == 0
    low = low_of(whole[1])[:, :32]
    assert torch.equal(video_of(blocks), torch.cat(list(pipe.enhance(low, PROMPT, SEED, progress=False)), dim=1))


def test_the_mp4_holds_the_frames_and_says_what_it_is(whole, tmp_path):
    session, blocks, _ = whole
    session.write_video(tmp_path / "a.mp4")
    info = probe(tmp_path / "a.mp4")
    assert (info["frames"], info["width"], info["fps"]) == (FRAMES, 32, 8.0)
    about = info["metadata"]
    assert (about["prompt"], about["seed"], about["versions"]["torch"]) == (PROMPT, SEED, torch.__version__)
    assert about["config_sha256"] == session.header["config_sha256"] and about["config"]["size"] == 16
    luma = np.array([0.2126, 0.7152, 0.0722])  # random colours do not survive yuv420p, their brightness does
    shown, made = read_video(tmp_path / "a.mp4") @ luma, to_uint8(video_of(blocks)[0]) @ luma
    distance = np.abs(shown[:, None] - made[None]).mean((2, 3))
    assert distance.argmin(1).tolist() == list(range(FRAMES)), "each frame in its place"


# ---------------------------------------------------------------------------------------------- stopped at any moment


def test_stopped_after_any_step_nothing_differs(pipe, whole, tmp_path):
    """A fault at every step in turn, on one session that gets ahead only because checkpoints survive."""
    session = Session.create(tmp_path / "s", pipe, PROMPT, FRAMES, SEED)
    faults = 0
    while not session.is_done:
        events = iter(session.steps())
        for _ in range(3 + faults % 40):
            if next(events, None) is None:
                break
        events.close()
        faults += 7
        session = Session.open(tmp_path / "s", pipe)
    assert faults > 10
    assert contents(tmp_path / "s") == whole[2]


def broken_writes(monkeypatch, at: int, before: bool):
    """The ``at``-th file is not written, or is written and then the process dies."""
    real, count = module.write_whole, [0]

    def write(path, data):
        count[0] += 1
        if count[0] == at and before:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.part").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        real(path, data)
        if count[0] == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_whole", write)
    return count


@pytest.mark.parametrize("before", [True, False])
def test_a_fault_at_every_file_of_a_checkpoint(pipe, whole, tmp_path, monkeypatch, before):
    """The files of the third checkpoint: frames, piece of video, wavefront, record."""
    start = Session.create(tmp_path / "start", pipe, PROMPT, FRAMES, SEED)
    for _ in start.run():
        if len(start.records) == 2:
            start.stop()
    third = [name for name in whole[0].records[2]["files"]]
    assert len(third) == 3
    for at in range(1, len(third) + 2):
        folder = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "start", folder)
        session = Session.open(folder, pipe)
        with monkeypatch.context() as patch:
            broken_writes(patch, at, before)
            with pytest.raises(KeyboardInterrupt):
                next(session.run())
        session = Session.open(folder, pipe)
        assert len(session.records) == (3 if at == len(third) + 1 and not before else 2)
        next(session.run())
        names = [name for name in contents(folder) if not name.startswith(("wavefront", "plan"))]
        assert all(contents(folder)[name] == whole[2][name] for name in names if name != "session.json")
        assert not [name for name in contents(folder) if name.endswith(".part")]
        assert len([name for name in contents(folder) if name.startswith("wavefront")]) == 1


def test_a_full_disk_is_one_clear_line_and_loses_nothing(pipe, whole, tmp_path, monkeypatch):
    session = Session.create(tmp_path / "s", pipe, PROMPT, FRAMES, SEED)
    next(session.run())

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            next(session.run())
    session = Session.open(tmp_path / "s", pipe)
    assert session.frames_made == 16
    list(session.run())
    assert contents(tmp_path / "s") == whole[2]


def test_two_processes_do_not_share_a_session(pipe, tmp_path):
    session = Session.create(tmp_path / "s", pipe, PROMPT, 24, SEED, enhance=False)
    events = session.steps()
    next(events)
    with pytest.raises(SessionError, match="another process"):
        next(Session.open(tmp_path / "s", pipe).run())
    events.close()
    assert len(list(Session.open(tmp_path / "s", pipe).run())) == 2
    assert list(session.run()) == [] and session.is_done, "the first one sees what the second did"


# ------------------------------------------------------------------------------------------------- refused, with reason


@pytest.fixture
def stopped(pipe, whole, tmp_path):
    """A copy of a session that has three checkpoints."""
    session = Session.create(tmp_path / "s", pipe, PROMPT, FRAMES, SEED)
    for _ in session.run():
        if len(session.records) == 3:
            session.stop()
    return tmp_path / "s"


def test_damaged_bytes_are_refused(pipe, stopped):
    for path in sorted(p for p in stopped.rglob("*") if p.is_file() and p.name != "lock"):
        good = path.read_bytes()
        for bad in (good[:-3], good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :]):
            path.write_bytes(bad)
            with pytest.raises(SessionError, match=r"damaged|follow"):
                Session.open(stopped, pipe)
        if path.name != "000002.json":  # without its record the last checkpoint is merely not there
            path.unlink()
            with pytest.raises(SessionError, match=r"missing|No such file|follow"):
                Session.open(stopped, pipe)
        path.write_bytes(good)
    Session.open(stopped, pipe)


def test_what_lies_before_the_damage_can_be_branched(pipe, stopped, tmp_path):
    (stopped / "blocks" / "000002.safetensors").write_bytes(b"lost")
    with pytest.raises(SessionError, match="earlier chunk"):
        Session.open(stopped, pipe)
    sound = Session.open(stopped, pipe, upto=2)
    with pytest.raises(SessionError, match="not run"):
        next(sound.run())
    branch = sound.branch(tmp_path / "b", 2)
    assert next(branch.run()).first_frame == 24


def test_a_checkpoint_of_another_session_does_not_fit(pipe, stopped, tmp_path):
    other = Session.create(tmp_path / "other", pipe, OTHER, FRAMES, SEED)
    for _ in other.run():
        if len(other.records) == 3:
            other.stop()
    for name in ("checkpoints/000002.json", *other.records[2]["files"]):
        shutil.copy(tmp_path / "other" / name, stopped / name)
    with pytest.raises(SessionError, match="does not follow"):
        Session.open(stopped, pipe)


def test_another_config_or_other_weights_are_refused(pipe, stopped, tmp_path):
    kept = pipe.cfg
    try:
        pipe.cfg = kept.replace(apm=None)
        with pytest.raises(SessionError, match="another config, it differs in apm"):
            Session.open(stopped, pipe)
        pipe.cfg = kept.replace(sampling=dataclasses.replace(kept.sampling, num_inference_steps=5))
        assert Session.open(stopped, pipe).cfg.sampling.num_inference_steps == 2, "a session keeps its sampling"
        old = Session.open(stopped, pipe)  # as of a version whose config had fewer fields
        del old.header["config"]["null_pixel"]
        old.header["config_sha256"] = "of fewer fields"
        old.cfg = StreamingT2VConfig.from_json(json.dumps(old.header["config"]))
        old._refuse_config()
    finally:
        pipe.cfg = kept
    header = json.loads((stopped / "session.json").read_text())
    header.pop("sha256")
    for newer in ({"format": 2}, {"limits": {**header["limits"], "a new one": 1}}, {"config": {"a new field": 1}}):
        module.write_sealed(stopped / "session.json", header | newer)
        with pytest.raises(SessionError, match="another version"):
            Session.open(stopped, pipe)
    module.write_sealed(stopped / "session.json", header)
    others = load("tiny", "cpu", write_micro(tmp_path / "data", seed=1) / "weights" / "tiny")
    with pytest.raises(SessionError, match="other weights"):
        Session.open(stopped, others)


def test_another_version_warns(pipe, stopped):
    header = module.read_sealed(stopped / "session.json")
    kept = (stopped / "session.json").read_bytes()
    module.write_sealed(stopped / "session.json", {**header, "versions": {**header["versions"], "torch": "1.0"}})
    with pytest.raises(SessionError, match="follow"):
        with pytest.warns(UserWarning, match="torch 1.0, here"):
            Session.open(stopped, pipe)
    (stopped / "session.json").write_bytes(kept)


def test_wrong_beginnings_are_told_before_anything_is_written(pipe, tmp_path):
    def create(prompt=PROMPT, frames=24, **options):
        return Session.create(tmp_path / "s", pipe, prompt, frames, **options)

    for options, says in [
        ({"prompt": " "}, "empty"),
        ({"prompt": lambda frame: PROMPT}, "no function"),
        ({"prompt": {0: PROMPT, 24: OTHER}}, "ends at 23"),
        ({"frames": 15}, "16 or more"),
        ({"seed": -1}, "seed"),
        ({"sampler": "magic"}, "ddim"),
    ]:
        with pytest.raises(InputError, match=says):
            create(**options)
    assert not (tmp_path / "s").exists()
    create()
    with pytest.raises(InputError, match="already"):
        create()
    with pytest.raises(SessionError, match="no session here"):
        Session.open(tmp_path, pipe)


def test_stage_3_needs_an_enhancer(pipe, tmp_path):
    enhancer, pipe.enhancer = pipe.enhancer, None
    try:
        with pytest.raises(WeightsError, match="enhance=False"):
            Session.create(tmp_path / "s", pipe, PROMPT)
    finally:
        pipe.enhancer = enhancer


# ------------------------------------------------------------------------------------------------ branch and re-roll


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_branch_shares_its_past_and_stage_3_sees_no_seam(pipe, whole, tmp_path, at):
    parent, blocks, files = whole
    branch = parent.branch(tmp_path / "b", at, prompt=OTHER, seed=9)
    new = list(branch.run())
    frame = parent.records[at - 1]["frames_made"] if at else 0
    low = low_of(blocks)[:, :frame], low_of(new)
    assert new[0].first_frame == frame and branch.frames_made == FRAMES
    assert torch.equal(branch.low_frames()[:, :FRAMES], torch.cat(low, dim=1))
    assert not torch.equal(low[1], low_of(blocks)[:, frame:])
    assert sorted(path.name for path in (tmp_path / "b" / "blocks").iterdir()) == [
        f"{k:06}.safetensors" for k in range(at, 5)
    ]
    prompts = {0: PROMPT, frame: OTHER} if at else OTHER
    high = torch.cat(list(pipe.enhance(torch.cat(low, dim=1), prompts, SEED, progress=False)), dim=1)
    out = video_of(new)
    assert torch.equal(out, high[:, FRAMES - out.shape[1] :]), "the wavefront was taken up exactly"
    branch.write_video(tmp_path / "b.mp4")
    assert probe(tmp_path / "b.mp4")["frames"] == FRAMES
    assert contents(parent.folder) == files, "the parent is as it was"


def test_a_branch_without_changes_is_its_parent(whole, tmp_path):
    parent, blocks, files = whole
    new = list(parent.branch(tmp_path / "b", 2).run())
    assert torch.equal(low_of(new), low_of(blocks[2:])) and torch.equal(video_of(new), video_of(blocks[2:]))


def test_a_branch_of_a_branch_interrupted(pipe, whole, tmp_path):
    first = whole[0].branch(tmp_path / "a", 2, seed=5)
    for _ in first.run():
        if len(first.records) == 4:
            first.stop()
    second = first.branch(tmp_path / "deep" / "b", 3, guidance_scale=1.0, num_frames=60)
    straight = first.branch(tmp_path / "c", 3, guidance_scale=1.0, num_frames=60)
    blocks = list(straight.run())
    for _ in range(3):
        next(second.run(), None)
        second = Session.open(tmp_path / "deep" / "b", pipe)
    list(second.run())
    assert second.is_done and straight.frames_out == 60
    ours, theirs = contents(tmp_path / "deep" / "b"), contents(tmp_path / "c")
    assert {n: b for n, b in ours.items() if "json" not in n} == {n: b for n, b in theirs.items() if "json" not in n}
    assert torch.equal(second.low_frames()[:, :24], whole[0].low_frames()[:, :24])
    assert not torch.equal(second.low_frames()[:, 24:32], whole[0].low_frames()[:, 24:32])
    assert blocks[0].first_frame == 32


def test_wrong_branches(pipe, whole, tmp_path):
    parent = whole[0]
    with pytest.raises(InputError, match="branched at 0 to 4"):
        parent.branch(tmp_path / "b", 5)
    with pytest.raises(InputError, match="num_frames"):
        parent.branch(tmp_path / "b", 4, num_frames=41)  # its past knew another end
    with pytest.raises(InputError, match="empty"):
        parent.branch(tmp_path / "b", 2, prompt="")
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="already"):
        parent.branch(parent.folder, 2)


def test_a_branch_whose_past_was_changed_is_refused(pipe, whole, tmp_path):
    shutil.copytree(whole[0].folder, tmp_path / "p")
    Session.open(tmp_path / "p", pipe).branch(tmp_path / "b", 2, seed=1)
    shutil.rmtree(tmp_path / "p" / "checkpoints")
    with pytest.raises(SessionError, match="no longer what it branched from"):
        Session.open(tmp_path / "b", pipe)


def test_a_moving_anchor_and_a_base_of_its_own_go_on(pipe, tmp_path):
    """The rival that follows the last frame, and a UNet for stage 1 alone: resumed, the pipeline's frames."""
    kept = pipe.cfg, pipe.base
    try:
        pipe.cfg, pipe.base = kept[0].replace(anchor="last"), make_unet(kept[0].unet).eval()
        session = Session.create(tmp_path / "s", pipe, PROMPT, 40, SEED, enhance=False)
        while not session.is_done:
            next(session.run())
            session = Session.open(tmp_path / "s", pipe)
        low = torch.cat(list(pipe.stream(PROMPT, 40, SEED, progress=False)), dim=1)
        assert torch.equal(session.low_frames(), low)
    finally:
        pipe.cfg, pipe.base = kept


def test_steps_and_guidance_reach_a_base_of_its_own(pipe, tmp_path):
    """Those that are given; a session keeps them for its first chunk, and a branch from the start may change them."""
    cfg, made = pipe.cfg, []
    pipe.base = make_unet(cfg.unet).eval()

    def calls(blocks):
        count = []
        pipe.base.conv_in.register_forward_pre_hook(lambda *_: count.append(1))
        try:
            made.append(next(blocks))
        finally:
            pipe.base.conv_in._forward_pre_hooks.clear()
        return len(count)

    try:
        given = dict(num_inference_steps=3, guidance_scale=2.0)
        stream = pipe.stream(PROMPT, 24, SEED, progress=False, **given)
        assert stream.cost == 3 + 3 and calls(stream) == 3
        session = Session.create(tmp_path / "s", pipe, PROMPT, 24, SEED, enhance=False, **given)
        assert calls(Session.open(tmp_path / "s", pipe).run()) == 3
        assert torch.equal(made[1].low, made[0])
        other = Session.create(tmp_path / "o", pipe, PROMPT, 16, SEED, enhance=False, **given)
        steps = [event for event in other.steps() if isinstance(event, StepState)]
        assert [step.index for step in steps] == [0, 1, 2] and torch.equal(other.low_frames(), made[0])
        calls(session.branch(tmp_path / "b", 0, guidance_scale=5.0).run())
        calls(pipe.stream(PROMPT, 24, SEED, progress=False, num_inference_steps=3, guidance_scale=5.0))
        assert torch.equal(made[2].low, made[3]) and not torch.equal(made[2].low, made[0])
        assert pipe.stream(PROMPT, 24, SEED, progress=False).cost == 50 + cfg.sampling.num_inference_steps
        assert calls(pipe.stream(PROMPT, 16, SEED, progress=False)) == 50
    finally:
        pipe.base = None


def test_an_enhanced_picture_need_not_be_square(pipe, tmp_path):
    kept = pipe.cfg
    try:
        pipe.cfg = kept.replace(enhancer=dataclasses.replace(kept.enhancer, size=(32, 48)))
        blocks = list(Session.create(tmp_path / "s", pipe, PROMPT, 24, SEED).run())
        frames = torch.cat([block.video for block in blocks], dim=1)
        assert frames.shape == (1, 24, 3, 32, 48)
        assert torch.equal(frames, pipe(PROMPT, 24, SEED, progress=False).frames)
        session = Session.open(tmp_path / "s", pipe)
        session.write_video(tmp_path / "a.mp4")
        assert (probe(tmp_path / "a.mp4")["width"], probe(tmp_path / "a.mp4")["height"]) == (48, 32)
    finally:
        pipe.cfg = kept


# -------------------------------------------------------------------------------------- control while it runs, asyncio


def test_the_prompt_changes_while_it_runs_and_survives(pipe, whole, tmp_path):
    """Changed in the middle of a chunk: from the next one on; killed right after, the change is not lost."""
    session = Session.create(tmp_path / "s", pipe, PROMPT, FRAMES, SEED)
    events = session.steps()
    for event in events:
        if isinstance(event, StepState) and session.frames_made == 24:
            break
    assert session.change(OTHER) == 32, "the chunk of frames 24 to 31 had begun"
    events.close()
    session = Session.open(tmp_path / "s", pipe)
    list(session.run())
    assert [record["prompt"] for record in session.records] == [PROMPT] * 3 + [OTHER] * 2
    planned = Session.create(tmp_path / "planned", pipe, {0: PROMPT, 32: OTHER}, FRAMES, SEED)
    low = low_of(list(planned.run()))
    assert torch.equal(session.low_frames()[:, :FRAMES], low)
    assert torch.equal(low[:, :32], low_of(whole[1])[:, :32]) and not torch.equal(low[:, 32:], low_of(whole[1])[:, 32:])


def test_a_schedule_of_thousands_of_prompts(pipe, tmp_path):
    """An mp4 has no room for them; the plan has."""
    prompts = {8 * i: (PROMPT, OTHER)[i % 2] for i in range(2600)}
    session = Session.create(tmp_path / "s", pipe, prompts, None, SEED, enhance=False)
    for _ in session.run():
        if len(session.records) == 2:
            session.stop()
    session.write_video(tmp_path / "a.mp4")
    assert probe(tmp_path / "a.mp4")["metadata"]["prompts"] == {}
    assert len(Session.open(session.folder, pipe).plan.prompts) == 2600


def test_wrong_changes_are_refused(pipe, whole, stopped):
    session = Session.open(stopped, pipe)
    with pytest.raises(InputError, match="has been made already"):
        session.change(OTHER, frame=8)
    with pytest.raises(InputError, match="empty"):
        session.change("  ")
    with pytest.raises(InputError, match="beyond the end"):
        session.change(OTHER, frame=FRAMES)
    with pytest.raises(InputError, match="guidance_scale"):
        session.change(guidance_scale=-1.0)
    assert session.plan == whole[0].plan


def test_one_denoising_step_a_tick(pipe, whole, tmp_path):
    """Between two steps the event loop does something else; stop is heard there; then it goes on to the same bytes."""
    session = Session.create(tmp_path / "s", pipe, PROMPT, FRAMES, SEED)
    seen, ticks = [], []

    async def main():
        task = asyncio.create_task(session.play(seen.append))
        while not task.done():
            ticks.append(len(seen))
            if len(seen) == 9:
                session.stop()
            await asyncio.sleep(0)
        await task

    asyncio.run(main())
    assert len(seen) == 9 and max(np.diff(ticks)) == 1, "never two steps without a pause"
    assert not session.is_done
    asyncio.run(session.play())
    assert contents(tmp_path / "s") == whole[2]


def test_a_cancelled_task_lets_the_session_go(pipe, tmp_path):
    session = Session.create(tmp_path / "s", pipe, PROMPT, 24, SEED, enhance=False)

    async def main():
        task = asyncio.create_task(session.play())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    again = Session.open(tmp_path / "s", pipe)
    list(again.run())
    assert again.is_done


def test_two_sessions_take_turns_on_one_pipeline(pipe, whole, tmp_path):
    """Steps of one between steps of the other: schedulers and memories do not mix."""
    sessions = [Session.create(tmp_path / str(i), pipe, PROMPT, FRAMES, SEED) for i in range(2)]

    async def main():
        await asyncio.gather(*(session.play() for session in sessions))

    asyncio.run(main())
    for session in sessions:
        assert contents(session.folder) == whole[2]


# --------------------------------------------------------------------------------------------------------- drift watch


def test_drift_is_watched_and_kept(whole):
    session, blocks, _ = whole
    assert all(set(b.look) == {"colour", "contrast", "sharpness", "motion", "clip_distance"} for b in blocks)
    assert [record["look"] for record in session.records] == [b.look for b in blocks]
    on_disk = json.loads((session.folder / "checkpoints" / "000002.json").read_text())
    assert on_disk["look"] == blocks[2].look


def test_steps_and_blocks_are_the_only_events(whole):
    session, _, _ = whole
    assert session.is_done and list(session.steps()) == []
    assert all(isinstance(event, (StepState, Block)) for event in whole[1])


def test_every_error_is_a_users_error():
    assert issubclass(SessionError, UserError)
