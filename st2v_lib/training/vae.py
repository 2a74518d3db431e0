"""Trains the tiny VAE on single frames of the sprite world, at 64 and 128 pixels, to its gate; then it stays frozen.

Reconstruction is weighted up inside sprites (the masks are free here), since they cover a tenth of the frame and carry
all that the memories have to keep. Two of three batches are crops around sprites. A quarter of the 128-pixel batches
are enlarged 64-pixel ones, the enhancer's input.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from st2v_lib.backbone import PatchedAutoencoderKL
from st2v_lib.training.common import save_folder
from st2v_lib.world.render import render
from st2v_lib.world.scene import sample_scene

SPRITE_WEIGHT = 4.0
POOLS = {64: (512, 6, 8192), 128: (128, 2, 1024)}  # by size: frames before the first step, at each step, and kept
BLOCK = 512  # frames rendered at once before the first step
CROP = 32  # most batches are crops around a sprite: four times as many sprites for the same work
KL_WEIGHT = 2e-5


def frame_batch(
    rng: random.Random, size: int, count: int, split: str = "train", device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """Random frames ``(n, 3, size, size)`` in [-1, 1] with their sprite masks ``(n, 1, size, size)``."""
    scenes = [sample_scene(rng.randrange(2**31), i, split) for i in range(count)]
    video, truth = render(scenes, 1, [rng.randrange(400) for _ in scenes], size, device, truth="masks")
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
        return 4 * mse + 0.1 * l1 + KL_WEIGHT * kl * 64, {"mse": error.square().mean().detach(), "kl": kl.detach()}


def sprite_crops(batch: dict[str, torch.Tensor], rng: random.Random, side: int = CROP) -> dict[str, torch.Tensor]:
    """One window of ``side`` pixels from each frame, around a random sprite pixel where there is one."""
    frames, mask = batch["frames"], batch["mask"]
    count, size, device = len(frames), frames.shape[-1], frames.device
    generator = torch.Generator(device).manual_seed(rng.randrange(2**31))
    pixel = (mask.flatten(1) + 1e-6).multinomial(1, generator=generator)[:, 0]
    back = torch.randint(side, (2, count), generator=generator, device=device)
    corners = (torch.stack([pixel // size, pixel % size]) - back).clamp(0, size - side)
    y, x = corners[..., None] + torch.arange(side, device=device)
    i = torch.arange(count, device=device)[:, None, None]
    cut = lambda v: v.movedim(1, -1)[i, y[:, :, None], x[:, None]].movedim(-1, 1)  # noqa: E731
    return {"frames": cut(frames), "mask": cut(mask)}


class FramePool:
    """Rendered frames kept for reuse: drawing them costs more than a training step on crops of them."""

    def __init__(self, size: int, prefill: int, fresh: int, capacity: int, device: torch.device | str = "cpu"):
        self.size, self.prefill, self.fresh, self.device, self.made = size, prefill, fresh, device, 0
        self.frames = torch.empty(capacity, 3, size, size, dtype=torch.float16, device=device)
        self.masks = torch.empty(capacity, 1, size, size, dtype=torch.bool, device=device)

    def draw(self, rng: random.Random, count: int) -> dict[str, torch.Tensor]:
        """``count`` frames of the pool, after some new ones have joined it."""
        for _ in range(1 if self.made else -(-self.prefill // BLOCK)):
            new = frame_batch(rng, self.size, self.fresh if self.made >= self.prefill else BLOCK, device=self.device)
            slots = [(self.made + i) % len(self.frames) for i in range(len(new["frames"]))]
            self.frames[slots], self.masks[slots] = new["frames"].half(), new["mask"].bool()
            self.made += len(slots)
        picks = [rng.randrange(min(self.made, len(self.frames))) for _ in range(count)]
        return {"frames": self.frames[picks].float(), "mask": self.masks[picks].float()}


def make_batch(seed: int, batch_scale: float = 1.0, device: torch.device | str = "cpu"):
    """Batch number ``n``: two of three are crops; every other batch is at 128 pixels, where the fine detail is."""
    scaled = lambda k: max(1, round(k * batch_scale))  # noqa: E731
    pools = {size: FramePool(size, *map(scaled, numbers), device) for size, numbers in POOLS.items()}

    def batch(rank: int, n: int) -> dict[str, torch.Tensor]:
        rng = random.Random(f"vae/{seed}/{rank}/{n}")
        size = 128 if n % 2 == 0 else 64
        crop = n % 3 != 0
        out = pools[size].draw(rng, scaled(8 if size == 128 and not crop else 32))
        if size == 128 and rng.random() < 1 / 4:
            small = F.interpolate(out["frames"], scale_factor=0.5, mode="area")
            out["frames"] = F.interpolate(small, scale_factor=2.0, mode="bicubic").clamp(-1, 1)
        return sprite_crops(out, rng) if crop else out

    return batch


@torch.no_grad()
def reconstruction_psnr(
    vae: PatchedAutoencoderKL, size: int = 64, count: int = 256, split: str = "dev"
) -> dict[str, float]:
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
    """Sets the scaling factor, unless the encoder was frozen, and writes the VAE as fp16 safetensors."""
    if any(p.requires_grad for p in vae.encoder.parameters()):
        vae.register_to_config(scaling_factor=round(latent_scale(vae), 5))
    save_folder(out, vae.half().save_pretrained)
