"""Trains the tiny enhancer: a text-conditioned video model of 128-pixel clips, used by SDEdit (paper §4.3).

It learns v-prediction on the enhancer's own noise schedule, only at levels that SDEdit can start from. Half of the
clips are noised from what SDEdit starts with, the enlarged 64-pixel frames, and still have the true ones as their aim.
Its network is the stock 3-D UNet at twice the base's latent size; clips are short windows since nothing in it counts
frames.
"""

from __future__ import annotations

import random

import torch
from transformers import CLIPTextModelWithProjection

from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.enhancer import logsnr_cosine_interp
from st2v_lib.training.base import TEXT_DROPOUT
from st2v_lib.training.data import Captioner, growing_pool
from st2v_lib.training.diffusion import DiffusionStep, weighted_mse

MAX_TIMESTEP = 700
ENLARGED, ENLARGED_MIN_TIMESTEP = 0.5, 20  # share of clips noised from the enlarged frames; below, v is ill-posed
SIGMA_FULL = 0.3  # below this noise, the loss of an enlarged clip is that of the clean prediction, not of v
FRAMES, BATCH, CAPACITY, PREFILL = 8, 4, 2048, 48


class EnhancerStep(DiffusionStep):
    """v-prediction loss on 128-pixel clips."""

    def __init__(self, unet: StreamingUNet, text_encoder: CLIPTextModelWithProjection):
        super().__init__(text_encoder)
        self.unet, schedule = unet, logsnr_cosine_interp()
        self.register_buffer("alphas", schedule.alphas.float())
        self.register_buffer("sigmas", schedule.sigmas.float())

    def loss(self, batch: dict[str, torch.Tensor]):
        latents, count = batch["latents"], len(batch["latents"])
        wide = lambda v: v.view(-1, 1, 1, 1, 1).to(latents)  # noqa: E731
        enlarged = torch.rand(count, device=latents.device) < ENLARGED
        t = torch.randint(0, MAX_TIMESTEP, (count,), device=latents.device)
        t = torch.where(enlarged, t.clamp(min=ENLARGED_MIN_TIMESTEP), t)
        alpha, sigma = wide(self.alphas[t]), wide(self.sigmas[t])
        start = torch.lerp(latents, batch["inputs"], wide(enlarged))
        x = alpha * start + sigma * torch.randn_like(latents)
        target = (alpha * x - latents) / sigma  # v, such that the clean prediction is the true clip
        weight = torch.where(wide(enlarged) > 0, (sigma / SIGMA_FULL).clamp(max=1), 1.0)
        prediction = self.unet(x, t, batch["text"])
        return weighted_mse(weight * prediction, weight * target, batch["mask"], 2.0), {}


def make_batch(cfg: StreamingT2VConfig, vae: PatchedAutoencoderKL, seed: int = 0, batch_scale: float = 1.0):
    """Batch number ``n``: short 128-pixel clips from a growing pool of 24-frame segments."""
    captions, count = Captioner(), max(1, round(BATCH * batch_scale))
    options = {"segment": cfg.enhancer.chunk_frames, "size": cfg.enhancer.size, "enlarged": True, "capacity": CAPACITY}
    segments = growing_pool(seed, 4, batch_scale, PREFILL, vae=vae, **options)

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"enhancer/{seed}/{rank}/{n}")
        pool = segments(rank, n)
        picks = [rng.randrange(len(pool.scenes)) for _ in range(count)]
        at = [rng.randrange(cfg.enhancer.chunk_frames - FRAMES + 1) for _ in picks]
        latents, inputs, mask = (pool.take(name, picks, at, FRAMES) for name in ("latents", "inputs", "masks"))
        ids = captions([pool.scenes[i][0] for i in picks], rng, TEXT_DROPOUT)
        return {"latents": latents, "inputs": inputs, "mask": mask, "ids": ids}

    return batch
