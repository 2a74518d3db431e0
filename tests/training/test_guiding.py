"""A guided CAM: in training its attention is told which past frame each carried frame repeats."""

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention

from st2v_lib.cam import Cam
from st2v_lib.loading import load
from st2v_lib.training import cam

N, F, C = 8, 16, 32


@pytest.fixture
def layer():
    layer = Attention(C, heads=2, dim_head=16, cross_attention_dim=C)
    for linear in (layer.to_q, layer.to_k):
        torch.nn.init.eye_(linear.weight)
    return layer


def one_hot(order, strength):
    """Frames ``1 len(order) C`` that say their number, once for each head."""
    return strength * torch.eye(16)[order].repeat(1, 2)[None]


def test_attention_that_finds_its_frame_costs_nothing(layer):
    past = one_hot(list(range(N)), 20.0)
    queries = torch.cat([one_hot(list(range(N)), 20.0), torch.randn(1, F - N, C)], dim=1)
    assert cam.misplaced([(layer, queries, past)]) < 1e-3
    asks_the_wrong_one = queries.roll(1, dims=1)
    assert cam.misplaced([(layer, asks_the_wrong_one, past)]) > 10


def test_attention_that_prefers_none_costs_the_logarithm_of_their_number(layer):
    even = cam.misplaced([(layer, torch.zeros(3, F, C), torch.randn(3, N, C))])
    assert even.item() == pytest.approx(math.log(N))


def test_new_frames_may_look_where_they_like(layer):
    past, queries = torch.randn(4, N, C), torch.randn(4, F, C)
    before = cam.misplaced([(layer, queries, past)])
    queries[:, N:] = 100 * torch.randn(4, F - N, C)
    assert torch.equal(cam.misplaced([(layer, queries, past)]), before)


def test_it_is_the_cross_entropy_of_the_weights_that_are_read(layer):
    past, queries = torch.randn(4, N, C), torch.randn(4, F, C)
    q, k = (x.unflatten(-1, (2, 16)).transpose(1, 2) for x in (queries, past))
    weights = (q @ k.transpose(-1, -2) / 4).softmax(-1)[:, :, :N].diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(cam.misplaced([(layer, queries, past)]), -weights.log().mean())


def test_a_step_adds_it_to_the_loss_and_leaves_no_hook():
    pipe = load("tiny", "cpu")
    torch.manual_seed(0)
    fresh = Cam.from_unet(pipe.unet, pipe.cfg.cam)
    batch = {
        "latents": torch.randn(1, 8, F, 8, 8), "mask": torch.zeros(1, F, 8, 8), "ids": torch.ones(1, 24).long(),
        "cond": torch.rand(1, N, 3, 64, 64) * 2 - 1,
    }  # fmt: skip
    losses = {}
    for guide in (0.0, 0.5):
        step = cam.CamStep(pipe.cfg, pipe.unet, pipe.text_encoder, fresh, guide=guide)
        torch.manual_seed(1)
        losses[guide], logged = step(batch)
    torch.testing.assert_close(losses[0.5], losses[0.0] + 0.5 * logged["misplaced"])
    losses[0.5].backward()
    queries = [injector.attention.to_q.weight for injector in fresh.injectors]
    assert all(weight.grad.any() for weight in queries), "the output layers are zero: only the guide reaches these"
    assert not any(injector.attention._forward_hooks for injector in fresh.injectors)
    pipe.cam.attach(pipe.unet)
