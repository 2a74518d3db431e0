"""Trains the tiny enhancer: a text-conditioned video model of 128-pixel clips, used by SDEdit (paper §4.3).

It learns v-prediction on the enhancer's own noise schedule, only at levels that SDEdit can start from. Its network is
the stock 3-D UNet at twice the base's latent size; clips are short windows since nothing in it counts frames.
"""

from __future__ import annotations

import random

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection

from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet, encode_frames
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.enhancer import logsnr_cosine_interp
from st2v_lib.training.base import TEXT_DROPOUT
from st2v_lib.training.common import fast_math
from st2v_lib.training.data import Captioner, draw_scene, latent_mask
from st2v_lib.training.diffusion import weighted_mse
from st2v_lib.world.render import render

MAX_TIMESTEP = 700
FRAMES, BATCH, CAPACITY, PREFILL = 8, 4, 2048, 24


class EnhancerStep(nn.Module):
    """v-prediction loss on 128-pixel clips; the text encoder is frozen."""

    def __init__(self, unet: StreamingUNet, text_encoder: CLIPTextModelWithProjection):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder.requires_grad_(False).eval()
        self.schedule = logsnr_cosine_interp()

    def forward(self, batch: dict[str, torch.Tensor]):
        latents = batch["latents"]
        with torch.no_grad():
            text = self.text_encoder(input_ids=batch["ids"]).last_hidden_state
        t = torch.randint(0, MAX_TIMESTEP, (len(latents),))
        noise = torch.randn_like(latents)
        wide = lambda v: v[t].view(-1, 1, 1, 1, 1).to(latents)  # noqa: E731
        alpha, sigma = wide(self.schedule.alphas), wide(self.schedule.sigmas)
        target = alpha * noise - sigma * latents
        prediction = self.unet(alpha * latents + sigma * noise, t.to(latents.device), text)
        return weighted_mse(prediction, target, batch["mask"], 2.0), {}


def make_batch(cfg: StreamingT2VConfig, vae: PatchedAutoencoderKL, seed: int = 0, batch_scale: float = 1.0):
    """Batch number ``n``: short 128-pixel clips from a pool of 24-frame segments that grows by one at each step."""
    captions, pool = Captioner(), []
    device = next(vae.parameters()).device

    @torch.no_grad()
    def segment(rng: random.Random):
        scene, start = draw_scene(rng)
        size = cfg.enhancer.size
        video, truth = render(scene, cfg.enhancer.chunk_frames, start, size, device=device, truth="masks")
        with fast_math(device):
            latents = encode_frames(vae, video, batch_size=32)[0].half().cpu()
        return scene, latents, latent_mask(truth.instances, latents.shape[-1])[0].half().cpu()

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"enhancer/{seed}/{rank}/{n}")
        for _ in range(1 if pool else PREFILL):
            new = segment(rng)
            if len(pool) < CAPACITY:
                pool.append(new)
            else:
                pool[n % CAPACITY] = new
        picks = [rng.choice(pool) for _ in range(max(1, round(BATCH * batch_scale)))]
        at = [rng.randrange(cfg.enhancer.chunk_frames - FRAMES + 1) for _ in picks]
        latents = torch.stack([p[1][:, a : a + FRAMES] for p, a in zip(picks, at)]).float()
        mask = torch.stack([p[2][a : a + FRAMES] for p, a in zip(picks, at)]).float()
        return {"latents": latents, "mask": mask, "ids": captions([p[0] for p in picks], rng, TEXT_DROPOUT)}

    return batch
