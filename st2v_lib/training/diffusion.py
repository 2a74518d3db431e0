"""What all diffusion phases share: noising, the v or epsilon target, and the loss with its weight inside sprites."""

from __future__ import annotations

import contextlib

import torch
from diffusers import SchedulerMixin
from torch.nn.attention import SDPBackend, sdpa_kernel

SPRITE_WEIGHT = 5.0


def fast_attention(device: torch.device | str):
    """On a CPU the plain attention kernel: the fused one's bfloat16 backward pass takes twice the whole step."""
    return sdpa_kernel(SDPBackend.MATH) if torch.device(device).type == "cpu" else contextlib.nullcontext()


def noised(scheduler: SchedulerMixin, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor):
    """Noisy latents and the target of the scheduler's prediction type."""
    x = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        return x, scheduler.get_velocity(latents, noise, timesteps)
    return x, noise


def random_timesteps(scheduler: SchedulerMixin, count: int, device: torch.device | str) -> torch.Tensor:
    """Training timesteps ``(count,)``: each uniform, one from each of ``count`` strata (small batches vary less)."""
    strata = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
    steps = scheduler.config.num_train_timesteps
    return (strata * steps).long().clamp(max=steps - 1)


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weight: float = SPRITE_WEIGHT):
    """Mean squared error with ``weight`` inside sprites.

    Args:
        prediction, target: ``(b, c, f, h, w)``.
        mask: share of sprite pixels of each latent cell, ``(b, f, h, w)``.
    """
    w = (1 + (weight - 1) * mask).unsqueeze(1)
    return (w * (prediction.float() - target).square()).mean() / w.mean()
