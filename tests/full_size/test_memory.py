"""Rungs of memory: chosen from what is free, left when memory runs out, and the same frames on each."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from st2v_lib import memory
from st2v_lib.backbone import make_unet
from st2v_lib.config import TINY
from st2v_lib.errors import DeviceError, InputError
from st2v_lib.loading import load
from st2v_lib.memory import RUNGS, Ladder, PeakCounter, choose_rung, chunk_feed_forward
from st2v_lib.pipeline import StreamingT2VPipeline

PROMPT = "a red circle bounces over green stripes"


@pytest.fixture
def pipe(random_weights, quick_config):
    loaded = load("tiny", "cpu", random_weights / "weights" / "tiny")
    loaded.cfg = quick_config
    return loaded


def frames(pipe):
    return pipe(PROMPT, num_frames=24, seed=1, progress=False).frames


@pytest.fixture(scope="module")
def expected(random_weights, quick_config):
    """What every rung has to make."""
    plain = load("tiny", "cpu", random_weights / "weights" / "tiny")
    plain.cfg = quick_config
    return frames(plain)


@pytest.mark.parametrize(("free", "name"), [(80e9, "fastest"), (15.5e9, "16 GB"), (8e9, "smallest"), (1e9, "smallest")])
def test_rung_by_free_memory(free, name):
    assert choose_rung(free).name == name
    assert choose_rung(free, "fastest").name == "fastest"
    with pytest.raises(InputError, match="choose auto, fastest, 16 GB, smallest"):
        choose_rung(free, "tiny")


def test_every_rung_makes_the_same_frames(pipe, expected):
    said = []
    ladder = pipe.ladder = Ladder(pipe, torch.device("cpu"), "fastest", said.append)
    for rung in RUNGS:
        ladder.apply(rung)
        assert pipe.vae.use_slicing == rung.slice_vae
        assert (frames(pipe) - expected).abs().max() < 1e-3
    assert len(said) == 1 and "'fastest' on cpu" in said[0]


def test_the_smallest_rung_runs_one_branch_at_a_time(pipe):
    pipe.cfg = pipe.cfg.replace(enhancer=dataclasses.replace(pipe.cfg.enhancer, guidance_scale=4.0))
    sizes = []
    pipe.enhancer.mid_block.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    ladder = pipe.ladder = Ladder(pipe, torch.device("cpu"), "16 GB", lambda _: None)
    video = torch.zeros(1, 16, 3, 64, 64)
    both = torch.cat(list(pipe.enhance(video, PROMPT, progress=False)), 1)
    assert set(sizes) == {2 * 16}
    ladder.down()
    sizes.clear()
    single = torch.cat(list(pipe.enhance(video, PROMPT, progress=False)), 1)
    assert set(sizes) == {16} and (both - single).abs().max() < 1e-3


@pytest.mark.parametrize("part", ["unet", "cam", "enhancer", "vae"])
def test_out_of_memory_goes_down_says_so_and_loses_nothing(pipe, expected, part):
    said, left = [], [1, 1]
    net = pipe.vae.decoder if part == "vae" else getattr(pipe, part)
    net = net.extractor.mid_block if part == "cam" else net

    def short(*_):
        left[0] -= 1
        if left[0] == 0:
            left[0] = 10**9 if left[1] == 0 else 2
            left[1] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    pipe.ladder = Ladder(pipe, torch.device("cpu"), "fastest", said.append)
    (net.conv_in if hasattr(net, "conv_in") else net).register_forward_pre_hook(short)
    assert (frames(pipe) - expected).abs().max() < 1e-3
    assert [line for line in said if "out of memory" in line] == [
        "memory: out of memory, going on with rung '16 GB'", "memory: out of memory, going on with rung 'smallest'"
    ]  # fmt: skip


def test_the_last_rung_gives_one_clear_error(pipe):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    pipe.ladder = Ladder(pipe, torch.device("cpu"), "smallest", lambda _: None)
    pipe.unet.conv_in.register_forward_pre_hook(short)
    with pytest.raises(DeviceError, match="too small even for the smallest rung: CUDA out of memory"):
        frames(pipe)


def short_moves(monkeypatch, *failing):
    """Moves of these numbers, counted over all networks, find no memory; returns what has been moved."""
    real, moved = Ladder._move, []

    def move(self, name, device):
        moved.append(name)
        if len(moved) in failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        real(self, name, device)

    monkeypatch.setattr(Ladder, "_move", move)
    return moved


def test_out_of_memory_while_weights_are_first_moved_takes_a_smaller_rung(pipe, expected, monkeypatch):
    said = []
    short_moves(monkeypatch, 4)
    pipe.ladder = Ladder(pipe, torch.device("cpu"), "fastest", said.append)
    assert pipe.ladder.rung.name == "16 GB" and "rung '16 GB' on cpu" in said[-1]
    assert (frames(pipe) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("at", [1, 9])
def test_out_of_memory_while_going_down_goes_further_down(pipe, monkeypatch, at):
    ladder = Ladder(pipe, torch.device("cpu"), "fastest", lambda _: None)
    ladder.inside = ("unet", "cam")
    moved = short_moves(monkeypatch, at)  # 1: as the rung is applied, 9: as the stage is entered again
    assert ladder.down() and ladder.rung.name == "smallest" and ladder.inside == ("unet", "cam")
    assert len(moved) > 9


def test_out_of_memory_as_a_stage_is_entered_goes_down(pipe, expected, monkeypatch):
    said = []
    pipe.ladder = Ladder(pipe, torch.device("cpu"), "16 GB", said.append)
    short_moves(monkeypatch, 1)
    assert (frames(pipe) - expected).abs().max() < 1e-3
    assert said[1:] == ["memory: out of memory, going on with rung 'smallest'"]


def test_weights_that_fit_on_no_rung_are_one_clear_error(pipe, monkeypatch):
    short_moves(monkeypatch, *range(1, 100))
    with pytest.raises(DeviceError, match="too small even for the smallest rung: CUDA out of memory"):
        Ladder(pipe, torch.device("cpu"), "fastest", lambda _: None)


def test_off_loading_keeps_one_stage_on_the_device(pipe, monkeypatch):
    """Counted with moves noted in place of made: the meta device cannot compute and there may be no other."""
    where = {}
    monkeypatch.setattr(Ladder, "_move", lambda self, name, device: where.__setitem__(name, str(device)))
    resident = []
    ladder = pipe.ladder = Ladder(pipe, torch.device("cpu", 0), "16 GB", lambda _: None)
    for name in ("unet", "enhancer"):
        net = getattr(pipe, name)
        net.conv_in.register_forward_pre_hook(lambda *_, name=name: resident.append((name, dict(where))))
    frames(pipe)
    on = lambda places: {name for name, device in places.items() if device == "cpu:0"}  # noqa: E731
    stages = {name: on(places) for name, places in resident}
    assert stages == {"unet": {"unet", "cam", "vae", "apm"}, "enhancer": {"enhancer", "vae", "apm"}}
    assert ladder.inside == ("enhancer",)


@pytest.mark.parametrize("rung", ["fastest", "16 GB"])
def test_weights_may_change_their_type_under_a_ladder(expected, random_weights, quick_config, rung):
    half = StreamingT2VPipeline.from_pretrained(random_weights / "weights" / "tiny", torch_dtype=torch.float16)
    half.cfg = quick_config
    half.ladder = Ladder(half, torch.device("cpu"), rung, lambda _: None)
    half.to(torch.float32)
    half.ladder.enter(("enhancer",))  # would bring the old weights back
    half.ladder.down()
    assert {net.dtype for net in half.ladder.nets.values()} == {torch.float32}
    assert (frames(half) - expected).abs().max() < 1e-3


def test_a_rung_is_chosen_by_the_size_of_the_type(pipe, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 30e9)
    assert Ladder(pipe, torch.device("cpu"), report=lambda _: None).rung.name == "16 GB"  # float32 takes twice as much
    pipe.to(torch.float16)
    assert Ladder(pipe, torch.device("cpu"), report=lambda _: None).rung.name == "fastest"


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 7, 64, 10**6])
def test_feed_forward_in_rows_of_any_number(rows):
    torch.manual_seed(0)
    unet = make_unet(TINY.enhancer.unet).eval()
    x, tokens = torch.randn(1, 8, 3, 6, 10), torch.randn(1, 24, 128)
    whole = unet(x, 5, tokens)
    assert (chunk_feed_forward(unet, rows)(x, 5, tokens) - whole).abs().max() < 1e-4
    assert torch.equal(chunk_feed_forward(unet, None)(x, 5, tokens), whole)


def test_peak_counter_counts_what_lives_together():
    with PeakCounter() as counter, torch.device("meta"):
        a = torch.empty(1000)
        b = torch.empty(500)
        c = a[:500] + b
        del b
        d = torch.empty(250)
        assert counter.live == 4 * (1000 + 500 + 250), "b is gone"
        del a, c, d
        assert counter.live == 0
    assert counter.peak == 4 * 2000


def test_computed_memory_falls_from_rung_to_rung():
    peaks = []
    with torch.device("meta"), torch.no_grad():
        unet = make_unet(TINY.enhancer.unet)
        x, tokens = torch.empty(2, 8, 24, 32, 32), torch.empty(2, 24, 128)
        for rows, one in ((None, False), (2**10, False), (2**10, True)):
            chunk_feed_forward(unet, rows)
            with PeakCounter() as counter:
                memory.one_by_one(unet.forward, x, 5, tokens) if one else unet(x, 5, tokens)
            peaks.append(counter.peak)
    assert peaks[0] > peaks[1] > 1.5 * peaks[2]
