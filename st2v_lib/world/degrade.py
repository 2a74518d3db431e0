"""Damage to frames: what the reader must see through, and what its error is measured on.

All functions take frames ``(n, 3, h, w)`` in [-1, 1] and one strength per frame ``(n,)`` in the stated unit; a strength
of 0 leaves a frame as it is. Sizes in pixels are those of the frames given.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def blur(frames: Tensor, sigma: Tensor, radius: int = 5) -> Tensor:
    """Gaussian blur; ``sigma`` is its standard deviation in pixels."""
    n, c, h, w = frames.shape
    offsets = torch.arange(-radius, radius + 1, device=frames.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None]
    x = rearrange(frames, "n c h w -> 1 (n c) h w")
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), "replicate"), kernel[:, :, None], groups=n * c)
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), "replicate"), kernel[..., None], groups=n * c)
    return x.view(n, c, h, w)


def noise(frames: Tensor, std: Tensor, generator: torch.Generator, cell: int = 1) -> Tensor:
    """Gaussian noise of standard deviation ``std``; with ``cell`` > 1 it is smooth, one draw for that many pixels."""
    n, c, h, w = frames.shape
    draw = torch.randn(n, c, math.ceil(h / cell), math.ceil(w / cell), generator=generator).to(frames.device)
    if cell > 1:
        draw = F.interpolate(draw, size=(h, w), mode="bicubic")
    return frames + std.view(-1, 1, 1, 1) * draw


def resample(frames: Tensor, factor: float) -> Tensor:
    """Shrinks by ``factor`` and enlarges again (one factor for all)."""
    size = frames.shape[-2:]
    small = [max(8, round(s / factor)) for s in size]
    return F.interpolate(F.interpolate(frames, small, mode="area"), size, mode="bilinear")


def quantise(frames: Tensor, step: Tensor) -> Tensor:
    """JPEG-like loss: 8x8 cosine coefficients rounded to ``step`` (pixel units), coarser at high frequencies."""
    k = torch.arange(8, device=frames.device, dtype=torch.float32)
    basis = torch.cos(math.pi * (k + 0.5) * k[:, None] / 8) * (0.125 + 0.125 * (k > 0)[:, None]).sqrt()
    blocks = rearrange(frames, "n c (i a) (j b) -> n c i j a b", a=8, b=8)
    coarse = (1 + k + k[:, None]) * step.clamp(min=1e-4).view(-1, 1, 1, 1, 1, 1)
    kept = (basis @ blocks @ basis.T / coarse).round() * coarse
    return rearrange(basis.T @ kept @ basis, "n c i j a b -> n c (i a) (j b)")


def tint(frames: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    """Multiplies each colour channel, and shifts brightness, at random by about ``amount``."""
    gain, shift = (torch.randn(2, len(frames), 3, 1, 1, generator=generator).to(frames.device)).unbind()
    amount = amount.view(-1, 1, 1, 1)
    return (frames + 1) * (1 + amount * gain) - 1 + amount * shift


def wobble(frames: Tensor, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Bends frames by a smooth random displacement of about ``pixels``."""
    n, _, h, w = frames.shape
    bend = F.interpolate(torch.randn(n, 2, 8, 8, generator=generator).to(frames.device), (h, w), mode="bicubic")
    bend = rearrange(bend * pixels.view(-1, 1, 1, 1), "n c h w -> n h w c") * 2 / w
    eye = torch.eye(2, 3, device=frames.device).expand(n, 2, 3)
    grid = F.affine_grid(eye, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid + bend, padding_mode="border", align_corners=False)


def blobs(frames: Tensor, texture: Tensor, generator: torch.Generator) -> Tensor:
    """Smears cut-outs of other pictures (``texture``, like ``frames``) over frames in shapeless soft patches."""
    n, _, h, w = frames.shape
    field = torch.randn(n, 1, 9, 9, generator=generator).to(frames.device)
    field = F.interpolate(field, (h, w), mode="bicubic")
    share = (2 + 6 * torch.rand(n, 1, 1, 1, generator=generator)).to(frames.device)
    mask = (share * (field - 0.7)).clamp(0, 1)
    return frames + mask * (texture - frames)


__all__ = ["blobs", "blur", "noise", "quantise", "resample", "tint", "wobble"]
