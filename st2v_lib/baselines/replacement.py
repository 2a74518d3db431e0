"""The replacement method: before each step the slots of carried frames are set to these frames, noised to its level.

Not in the paper, where nothing is pasted into the latents: CAM alone says what went before. A base model whose temporal
layers see true frames beside the new ones can go on from them without any training (Ho et al. 2022, Video Diffusion
Models, arXiv 2204.03458, §3.1; for images RePaint, arXiv 2201.09865), so this is what a trained memory has to
better, and it can be had together with one: ``cfg.replace(conditioning="replacement")`` and ``"cam+replacement"``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def replacing(known: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What to do with the noisy latents before each denoising step.

    Args:
        known: clean latents of a chunk's first frames, ``b c n h w``.
        noise: the chunk's initial noise ``b c f h w``; known frames keep theirs at all levels.
        alphas_cumprod: the scheduler's, ᾱ of each timestep.

    Returns:
        A function of latents ``b c f h w`` and timestep that gives the latents with their first n frames replaced.
    """
    count, alphas = known.shape[2], alphas_cumprod.to(noise.device, noise.dtype)
    signal, spread, own = alphas.sqrt(), (1 - alphas).sqrt(), noise[:, :, :count]

    def replace(latents: Tensor, timestep: Tensor) -> Tensor:
        level = timestep.long()  # an index on the device, so no card waits
        given = signal[level] * known + spread[level] * own
        return torch.cat([given, latents[:, :, count:]], dim=2)

    return replace
