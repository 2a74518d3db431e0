"""Trains the tiny VAE on single frames of the sprite world, at 64 and 128 pixels, to its gate; then it stays frozen.

Reconstruction is weighted up inside sprites (the masks are free here), since they cover a tenth of the frame and carry
all that the memories have to keep. A third of the 128-pixel frames are enlarged 64-pixel ones, the enhancer's input.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from st2v_lib.backbone import PatchedAutoencoderKL
from st2v_lib.world.render import render
from st2v_lib.world.scene import sample_scene

SPRITE_WEIGHT = 4.0
KL_WEIGHT = 2e-5


def frame_batch(rng: random.Random, size: int, count: int, split: str = "train") -> dict[str, torch.Tensor]:
    """Random frames ``(n, 3, size, size)`` in [-1, 1] with their sprite masks ``(n, 1, size, size)``."""
    scenes = [sample_scene(rng.randrange(2**31), i, split) for i in range(count)]
    video, truth = render(scenes, 1, [rng.randrange(400) for _ in scenes], size, truth="masks")
    mask = ((truth.instances == 1) | (truth.instances == 2)).float()
    return {"frames": video[:, 0], "mask": mask}


class VaeStep(nn.Module):
    """Weighted reconstruction plus a light KL term."""

    def __init__(self, vae: PatchedAutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, batch: dict[str, torch.Tensor]):
        frames = batch["frames"]
        posterior = self.vae.encode(frames).latent_dist
        out = self.vae.decode(posterior.sample()).sample.float()
        weight = 1 + (SPRITE_WEIGHT - 1) * F.max_pool2d(batch["mask"], 3, 1, 1)
        error = out - frames
        mse = (weight * error.square()).mean()
        l1 = (weight * error.abs()).mean()
        kl = posterior.kl().float().mean() / frames[0, 0].numel()
        return 4 * mse + 0.25 * l1 + KL_WEIGHT * kl * 64, {"mse": error.square().mean().detach(), "kl": kl.detach()}


def make_batch(seed: int):
    """Batch number ``n``: three of four at 64 pixels, the fourth at 128."""

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"vae/{seed}/{rank}/{n}")
        if n % 4:
            return frame_batch(rng, 64, 32)
        out = frame_batch(rng, 128, 8)
        if n % 12 == 0:
            small = F.interpolate(out["frames"], scale_factor=0.5, mode="area")
            out["frames"] = F.interpolate(small, scale_factor=2.0, mode="bicubic").clamp(-1, 1)
        return out

    return batch


@torch.no_grad()
def reconstruction_psnr(vae: PatchedAutoencoderKL, size: int = 64, count: int = 256, split: str = "dev") -> dict[str, float]:
    """PSNR in dB of decoded posterior means over whole frames and inside sprite masks, pixels in [0, 1]."""
    device = next(vae.parameters()).device
    whole, inside = [], []
    for i in range(0, count, 32):
        batch = frame_batch(random.Random(f"vae-gate/{split}/{i}"), size, 32, split)
        frames, mask = batch["frames"].to(device), batch["mask"].to(device).bool().expand(-1, 3, -1, -1)
        out = vae.decode(vae.encode(frames).latent_dist.mode()).sample.float().clamp(-1, 1)
        error = ((out - frames) / 2).square()
        whole.append(error.mean((1, 2, 3)))
        inside.append(error[mask])
    decibel = lambda e: float(-10 * torch.log10(e.mean()))  # noqa: E731
    return {"psnr": decibel(torch.cat(whole)), "psnr_sprites": decibel(torch.cat(inside))}


@torch.no_grad()
def latent_scale(vae: PatchedAutoencoderKL, count: int = 256) -> float:
    """The factor that gives latents unit standard deviation (the VAE's ``scaling_factor``)."""
    frames = frame_batch(random.Random("vae-scale"), 64, count)["frames"].to(next(vae.parameters()).device)
    return float(1 / vae.encode(frames).latent_dist.mode().std())


def finish(vae: PatchedAutoencoderKL, out: Path) -> None:
    """Sets the scaling factor and writes the VAE as fp16 safetensors."""
    vae.register_to_config(scaling_factor=round(latent_scale(vae), 5))
    vae.half().save_pretrained(out)
