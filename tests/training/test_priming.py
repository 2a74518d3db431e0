"""A primed CAM: it changes nothing yet, its pixel encoder sees, and its frames ask the frame in their own place."""

import pytest
import torch
from einops import rearrange
from torch import nn

from st2v_lib.backbone import encode_frames, encoder_half
from st2v_lib.baselines.add_cond import AddCond
from st2v_lib.baselines.rival import masked
from st2v_lib.cam import Cam
from st2v_lib.loading import load
from st2v_lib.training import cam


@pytest.fixture(scope="module")
def pipe():
    return load("tiny", "cpu")


def batches(pipe, count=2):
    """The same two clips of flat colours over and over, and their latents."""
    shades = torch.linspace(-0.8, 0.8, count * 16 * 3).view(count, 16, 3, 1, 1)
    video = shades[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))].expand(-1, -1, -1, 64, 64)
    with torch.no_grad():
        latents = encode_frames(pipe.vae, video, 16)
    return lambda rank, n: {"latents": latents, "cond": video[:, :8].contiguous(), "mask": None}


def prime(module, pipe, make_batch, steps=25):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cam, "SEEING_STEPS", steps)
        return cam.primed(module, pipe.unet, make_batch, torch.device("cpu"), minutes=60)


@pytest.fixture(scope="module")
def ready(pipe):
    return prime(Cam.from_unet(pipe.unet, pipe.cfg.cam), pipe, batches(pipe))


def asked(injector, skip, features):
    """Mean weight that frames 0-7 give the carried frame in their own place; an eighth is none in particular."""
    clip = rearrange(skip, "(b f) c h w -> b c f h w", b=len(features))
    queries = injector.attention.to_q(injector.proj_in(rearrange(injector.norm(clip), "b c f h w -> (b h w) f c")))
    keys = injector.attention.to_k(rearrange(features, "b n c h w -> (b h w) n c"))
    heads = injector.attention.heads
    q, k = (rearrange(v, "p n (a d) -> p a n d", a=heads) for v in (queries, keys))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return weights[:, :, :8].diagonal(dim1=-2, dim2=-1).mean().item()


def test_a_primed_cam_sees_asks_and_changes_nothing_yet(pipe, ready):
    make_batch, seen = batches(pipe), {}
    torch.manual_seed(0)
    fresh = Cam.from_unet(pipe.unet, pipe.cfg.cam)
    batch = make_batch(0, 0)
    x, t, text = torch.randn(2, 8, 16, 8, 8), torch.tensor(700), pipe.encode_text("a red circle").repeat(2, 1, 1)
    with torch.no_grad():
        for name, module in (("fresh", fresh), ("ready", ready)):
            features = module(x, t, text, cond=batch["cond"])
            blind = cam.blindness(module.encode_condition(batch["cond"]), batch, pipe.unet.conv_in)
            pipe.unet.set_injectors(None)
            plain = pipe.unet(x, t, text)
            skips, mid, *_ = encoder_half(pipe.unet, x, t, text)
            seen[name] = blind.item(), [asked(*each) for each in zip(module.injectors, [*skips, mid], features)]
            module.attach(pipe.unet)
            assert torch.equal(pipe.unet(x, t, text, cam_features=features), plain)
    pipe.cam.attach(pipe.unet)
    (blind, evenly), (seeing, own_place) = seen["fresh"], seen["ready"]
    assert blind > 0.99 and seeing < 0.5 * blind
    assert all(0.11 < share < 0.14 for share in evenly), "random queries and keys: an eighth each"
    assert all(share > 0.2 for share in own_place)


def test_only_the_pixel_encoder_learns(pipe, ready):
    theirs = pipe.unet.state_dict()
    for name, value in ready.extractor.state_dict().items():
        if not name.startswith("cond_encoder"):
            assert torch.equal(value, theirs[name])
    assert not any(injector.proj_out.weight.any() for injector in ready.injectors)
    assert ready.extractor.cond_encoder.conv_out.weight.any()


def test_blindness_counts_the_frames_that_are_given():
    conv_in, latents = nn.Conv2d(8, 4, 3, padding=1), torch.randn(2, 8, 16, 8, 8)
    frames = torch.rand(2, 16, 3, 64, 64) * 2 - 1
    given = torch.zeros(2, 16, dtype=torch.bool)
    given[0, 3] = given[1, 9] = True
    batch = {"latents": latents, "cond": masked(frames, given)}
    each = rearrange(latents, "b c n h w -> (b n) c h w")
    perfect = nn.functional.conv2d(each, conv_in.weight, padding=1).unflatten(0, (2, 16)).detach()
    assert cam.blindness(perfect, batch, conv_in) == 0
    other = perfect.clone()
    other[~given] += 1.0
    assert cam.blindness(other, batch, conv_in) == 0, "of frames that are not given nothing is asked"
    other[0, 3] += 1.0
    expected = 0.5 / perfect.var()
    torch.testing.assert_close(cam.blindness(other, batch, conv_in), expected)


def test_add_cond_can_be_primed_too(pipe):
    make_batch = batches(pipe)
    given = torch.ones(2, 8, dtype=torch.bool)
    given[:, 3:] = False

    def masked_batch(rank, n):
        batch = make_batch(rank, n)
        frames = torch.cat([batch["cond"], torch.zeros_like(batch["cond"])], dim=1)
        return batch | {"cond": masked(frames, torch.cat([given, torch.zeros_like(given)], dim=1))}

    rival = AddCond.from_unet(pipe.unet, pipe.cfg.cam, pipe.cfg.chunk_frames)
    batch = masked_batch(0, 0)
    before = cam.blindness(rival.encode_condition(batch["cond"]), batch, pipe.unet.conv_in)
    ready = prime(rival, pipe, masked_batch)
    assert cam.blindness(ready.encode_condition(batch["cond"]), batch, pipe.unet.conv_in) < 0.5 * before


def test_priming_ends_with_its_share_of_the_minutes(pipe, monkeypatch):
    asked_for = []
    make_batch = batches(pipe)
    monkeypatch.setattr(cam, "SEEING_STEPS", 10**6)
    cam.primed(
        Cam.from_unet(pipe.unet, pipe.cfg.cam), pipe.unet, lambda r, n: asked_for.append(n) or make_batch(r, n),
        torch.device("cpu"), minutes=0.02 / cam.SEEING_SHARE,
    )  # fmt: skip
    assert 0 < len(asked_for) < 1000
