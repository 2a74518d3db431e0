"""Phase 2: what trains, what stays, and which anchors it is shown."""

import pytest
import torch

from st2v_lib.loading import load
from st2v_lib.training import apm as phase2


@pytest.fixture
def parts(random_weights):
    pipe = load("tiny", "cpu", random_weights / "weights" / "tiny")
    return pipe.cfg, pipe.unet, pipe.text_encoder, pipe.image_encoder, pipe.cam, pipe.apm


def batch_of(cfg, dim):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
    cells = cfg.size // cfg.vae.downscale
    return {
        "latents": draw(1, cfg.unet.in_channels, cfg.chunk_frames, cells, cells),
        "mask": torch.zeros(1, cfg.chunk_frames, cells, cells),
        "cond": draw(1, cfg.cam.num_cond_frames, 3, cfg.size, cfg.size).tanh(), "text": draw(1, cfg.apm.text_len, dim),
        "embeds": draw(1, cfg.apm.image_embed_dim),
    }  # fmt: skip


@pytest.mark.parametrize("cam, unet", [(False, False), (True, False), (False, True)])
def test_what_trains_gets_gradients_and_a_rate(parts, cam, unet):
    cfg, main, text, image, memory, anchor = parts
    step = phase2.ApmStep(cfg, main, text, image, memory, anchor, train_unet=unet, train_cam=cam)
    for mix in anchor.mixes.values():
        torch.nn.init.constant_(mix.alpha, 0.3)
    for module in (main, memory, anchor):
        module.zero_grad(set_to_none=True)
    loss, logged = step.loss(batch_of(cfg, main.config.cross_attention_dim))
    loss.backward()
    assert logged["alpha"] == pytest.approx(0.3)
    felt = lambda module: any(p.grad is not None for p in module.parameters())  # noqa: E731
    assert felt(anchor) and felt(memory) == cam and felt(main) == unet
    groups = step.groups(1.0, cam=0.15, unet=0.05)
    assert [g["lr"] for g in groups] == [phase2.ALPHA_LR, 1.0, *([0.15] * cam), *([0.05] * unet)]
    listed = [id(p) for g in groups for p in g["params"]]
    trains = {id(p) for p in step.parameters() if p.requires_grad}
    assert len(listed) == len(set(listed)) and trains == set(listed)
