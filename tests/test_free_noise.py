"""FreeNoise: the same noise again and again, attention in windows, and for one chunk nothing but the base."""

import dataclasses

import pytest
import torch
from diffusers.models.attention_processor import Attention

from st2v_lib.backbone import make_unet
from st2v_lib.baselines.free_noise import WindowFusion, reschedule_noise, window_starts, windowed_attention
from st2v_lib.config import TINY
from st2v_lib.errors import InputError
from st2v_lib.evaluation.generate import base_chunks, free_noise_videos, video_seed
from st2v_lib.loading import load

PROMPTS = ["a red circle bounces over green stripes", "a blue star orbits over plain yellow"]


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def unet():
    """Random weights, the branches that start closed included."""
    torch.manual_seed(0)
    return make_unet(TINY.unet).eval()


def test_noise_comes_again_in_fragments():
    noise = torch.randn(2, 8, 16, 4, 4, generator=generator())
    long = reschedule_noise(noise, 50, generator())
    assert long.shape == (2, 8, 50, 4, 4) and torch.equal(long[:, :, :16], noise)
    name = {noise[0, :, i].sum().item(): i for i in range(16)}
    frames = [name[long[0, :, i].sum().item()] for i in range(50)]
    for start in range(16, 48, 4):  # the fragment of a chunk before, in an order of its own
        assert sorted(frames[start : start + 4]) == sorted(frames[start - 16 : start - 12])
    assert frames[16:48] != 2 * list(range(16))


def test_short_noise_is_cut_and_odd_fragments_are_refused():
    noise = torch.randn(1, 1, 16, 1, 1)
    assert torch.equal(reschedule_noise(noise, 10), noise[:, :, :10])
    with pytest.raises(InputError, match="5 frames do not divide a chunk of 16"):
        reschedule_noise(noise, 32, stride=5)


@pytest.mark.parametrize(
    ("frames", "starts"), [(8, [0]), (16, [0]), (17, [0, 1]), (24, [0, 4, 8]), (27, [0, 4, 8, 11])]
)
def test_windows_reach_the_end(frames, starts):
    assert window_starts(frames, 16) == starts


def test_overlaps_are_averaged_towards_the_nearest_centre():
    """Each window's output is its number: between two, the average follows the two ramps."""

    def numbered(attn, hidden_states):
        count = len(hidden_states)
        return torch.arange(1.0, 1 + count)[:, None, None].expand(count, 4, 1)

    out = WindowFusion(numbered, window=4, stride=2)(Attention(1, heads=1, dim_head=1), torch.zeros(1, 6, 1)).flatten()
    # ramps 1 2 2 1: frames 2 and 3 hear both windows, (2·1 + 1·2) / 3 and (1·1 + 2·2) / 3
    torch.testing.assert_close(out, torch.tensor([1, 1, 4 / 3, 5 / 3, 2, 2]))


@torch.no_grad()
def test_far_frames_do_not_meet_in_attention(unet):
    """One layer with windows: a change of the last frame stays within a window of it."""
    layer = unet.down_blocks[0].temp_attentions[0].transformer_blocks[0].attn1
    x = torch.randn(3, 40, layer.to_q.in_features, generator=generator())
    other = x.clone()
    other[:, -1] += 1
    fused = WindowFusion(layer.processor, window=16)
    change = lambda f: (f(other) - f(x)).abs().amax((0, 2))  # noqa: E731
    assert (change(lambda x: fused(layer, x))[:24] == 0).all() and (change(layer)[:24] > 0).all()
    torch.testing.assert_close(fused(layer, x[:, :16]), layer(x[:, :16]), rtol=0, atol=0)


def test_attention_is_given_back(unet):
    before = list(unet.attn_processors.values())
    with pytest.raises(RuntimeError), windowed_attention(unet, 16):
        within = list(unet.attn_processors.values())
        raise RuntimeError
    changed = sum(isinstance(p, WindowFusion) for p in within)
    assert changed > 10 and changed < len(within)  # attention within a frame and to the text is as it was
    assert [id(p) for p in unet.attn_processors.values()] == [id(p) for p in before]


def test_one_chunk_is_the_base_and_a_video_does_not_depend_on_its_batch():
    pipe = load("tiny")
    few = dataclasses.replace(pipe.cfg.sampling, num_inference_steps=2)
    pipe.cfg = pipe.cfg.replace(conditioning="none", apm=None, sampling=few)
    seeds = [video_seed(3, i) for i in range(2)]
    one = free_noise_videos(pipe, PROMPTS, seeds, 16)
    torch.testing.assert_close(one, base_chunks(pipe, PROMPTS, seeds), rtol=0, atol=0)
    long = free_noise_videos(pipe, PROMPTS, seeds, 32)
    assert long.shape == (2, 32, 3, 64, 64) and long.isfinite().all()
    alone = free_noise_videos(pipe, PROMPTS[1:], seeds[1:], 32)
    torch.testing.assert_close(alone[0], long[1], rtol=1e-3, atol=1e-3)
