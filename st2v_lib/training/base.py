"""Trains the tiny text-to-video base: single frames first (appearance, captions), then 4-frame clips, then 16.

Paper §3 and Tab. 12; the loss is weighted up inside sprites, where all the motion is. Clips take turns with batches of
single frames (joint image and video training, arXiv 2204.03458): sixteen scenes for the cost of one clip.
"""

from __future__ import annotations

import random

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection

from st2v_lib.backbone import PatchedAutoencoderKL, StreamingUNet
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.sampling import make_scheduler
from st2v_lib.training.data import FRESH, PREFILL, Captioner, Pool, single_frames
from st2v_lib.training.diffusion import noised, random_timesteps, weighted_mse

TEXT_DROPOUT = 0.1
IN_SIGHT = 0.8  # clips that begin with a sprite in sight, as a first chunk should
STAGES = ((800, (1,)), (300, (4,)), (None, (16, 1)))  # steps, and the clip lengths that take turns
BATCH = {1: 64, 4: 32, 16: 8}  # clips a step, by length


class BaseStep(nn.Module):
    """Denoising loss of the UNet with text; the text encoder is frozen."""

    def __init__(self, cfg: StreamingT2VConfig, unet: StreamingUNet, text_encoder: CLIPTextModelWithProjection):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder.requires_grad_(False).eval()
        self.scheduler = make_scheduler(cfg.scheduler, "ddim")

    def forward(self, batch: dict[str, torch.Tensor]):
        latents = batch["latents"]
        with torch.no_grad():
            text = self.text_encoder(input_ids=batch["ids"]).last_hidden_state
        noise = torch.randn_like(latents)
        t = random_timesteps(self.scheduler, len(latents), latents.device)
        x, target = noised(self.scheduler, latents, noise, t)
        return weighted_mse(self.unet(x, t, text), target, batch["mask"]), {}


def stage_at(step: int) -> tuple[int, int]:
    """Frames and batch size of a training step."""
    for steps, lengths in STAGES:
        if steps is None or step < steps:
            frames = lengths[step % len(lengths)]
            return frames, BATCH[frames]
        step -= steps
    raise AssertionError("the last stage has no end")


def make_batch(vae: PatchedAutoencoderKL, seed: int = 0, trained: bool = False, batch_scale: float = 1.0):
    """Batch number ``n`` of the stage it falls in.

    Args:
        trained: the network has been through the first stages in an earlier run: go straight to the last.
        batch_scale: multiplies the batch sizes.
    """
    skipped = sum(steps for steps, *_ in STAGES[:-1]) if trained else 0
    captions, pools = Captioner(), {}

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"base/{seed}/{rank}/{n}")
        frames, count = stage_at(n + skipped)
        count = max(1, round(count * batch_scale))
        if frames == 1:
            latents, mask, scenes = single_frames(vae, rng, count)
        else:
            if rank not in pools:
                pools[rank] = Pool(vae, seed=seed * 1_000_003 + n + skipped, rank=rank)
                pools[rank].grow(PREFILL)
            pools[rank].grow(FRESH)
            latents, mask, scenes, _, _ = pools[rank].draw(rng, count, frames, in_sight=IN_SIGHT)
        return {"latents": latents, "mask": mask, "ids": captions(scenes, rng, TEXT_DROPOUT)}

    return batch
