"""What all diffusion phases share: noising, the v or epsilon target, and the loss with its weight inside sprites."""

from __future__ import annotations

import contextlib

import torch
from diffusers import SchedulerMixin
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

SPRITE_WEIGHT = 5.0
TOWARDS_NOISE = 2.0  # how much more often timestep 999 is drawn than an even draw would; 0 is drawn as much less often


class DiffusionStep(nn.Module):
    """A phase's denoising loss with text; the text encoder is frozen. A subclass says what the loss is.

    :meth:`prepare` holds what no gradient needs and a recorded graph should not contain: frozen encoders.
    """

    def __init__(self, text_encoder: nn.Module):
        super().__init__()
        self.text_encoder = text_encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def prepare(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch with tokens ``b l d`` in place of its ids."""
        text = self.text_encoder(input_ids=batch["ids"]).last_hidden_state
        return {name: v for name, v in batch.items() if name != "ids"} | {"text": text}

    def forward(self, batch: dict[str, torch.Tensor]):
        """Loss and what is logged with it, of a batch prepared or not."""
        return self.loss(batch if "text" in batch else self.prepare(batch))

    def loss(self, batch: dict[str, torch.Tensor]):
        """Of a prepared batch."""
        raise TypeError(f"{type(self).__name__} has no loss")


def fast_attention(device: torch.device | str):
    """On a CPU the plain attention kernel: the fused one's bfloat16 backward pass takes twice the whole step."""
    return sdpa_kernel(SDPBackend.MATH) if torch.device(device).type == "cpu" else contextlib.nullcontext()


def noised(scheduler: SchedulerMixin, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor):
    """Noisy latents and the target of the scheduler's prediction type."""
    x = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        return x, scheduler.get_velocity(latents, noise, timesteps)
    return x, noise


def random_timesteps(
    scheduler: SchedulerMixin, count: int, device: torch.device | str, shift: float = TOWARDS_NOISE
) -> torch.Tensor:
    """Training timesteps ``(count,)``, one from each of ``count`` strata (small batches vary less).

    An even draw u becomes shift·u / (1 + (shift − 1)·u), as in arXiv 2403.03206 §5.3.2: sixteen frames show the same
    scene, so it takes more noise before a clip leaves anything to decide, and where a sprite goes is decided there.
    """
    strata = (torch.rand(count, device=device).argsort() + torch.rand(count, device=device)) / count
    strata = shift * strata / (1 + (shift - 1) * strata)
    steps = scheduler.config.num_train_timesteps
    return (strata * steps).long().clamp(max=steps - 1)


def at_random_levels(scheduler: SchedulerMixin, latents: torch.Tensor, shift: float = TOWARDS_NOISE):
    """Latents at ``random_timesteps``: the noisy ones, the timesteps, and the prediction to aim at."""
    noise = torch.randn_like(latents)
    t = random_timesteps(scheduler, len(latents), latents.device, shift)
    x, target = noised(scheduler, latents, noise, t)
    return x, t, target


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weight: float = SPRITE_WEIGHT):
    """Mean squared error with ``weight`` inside sprites.

    Args:
        prediction, target: ``(b, c, f, h, w)``.
        mask: share of sprite pixels of each latent cell, ``(b, f, h, w)``.
    """
    w = (1 + (weight - 1) * mask).unsqueeze(1)
    return (w * (prediction.float() - target).square()).mean() / w.mean()
