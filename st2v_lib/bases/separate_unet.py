"""Stage 1 by a UNet of its own (paper §4): the released model starts with ModelScope's untouched one.

Phase 2 of its training changed the spatial layers of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from st2v_lib.backbone import decode_latents, vae_downscale
from st2v_lib.bases import Base
from st2v_lib.config import SamplingConfig
from st2v_lib.sampling import (
    Contexts,
    StepState,
    chunk_generator,
    denoise_steps,
    make_predictor,
    make_scheduler,
    randn,
)
from st2v_lib.streaming import finish

SAMPLING = SamplingConfig(sampler="dpm++", num_inference_steps=50, eta=0.0, guidance_scale=9.0)  # the released numbers


@torch.no_grad()
def separate_steps(
    pipe, prompt: str, seed: int, negative_prompt: str = "", sampling: SamplingConfig = SAMPLING
) -> Generator[StepState, None, Tensor]:
    """Stage 1, a step at a time; see ``separate_unet``. Returns frames ``1 f 3 h w`` in [-1, 1] on the CPU."""
    cfg, generator = pipe.cfg, chunk_generator(seed, 0)
    cells, channels = cfg.size // vae_downscale(pipe.vae), pipe.base.config.out_channels
    for step in denoise_steps(
        make_predictor(pipe.base),
        make_scheduler(cfg.scheduler, sampling.sampler),
        randn((1, channels, cfg.chunk_frames, cells, cells), generator, pipe._execution_device),
        Contexts(pipe.encode_text(prompt), pipe.encode_text(negative_prompt), scale=sampling.guidance_scale),
        sampling.num_inference_steps,
        sampling.eta,
        generator,
    ):
        yield step
    return decode_latents(pipe.vae, step.latents).float().cpu()


def separate_unet(
    pipe,
    negative_prompt: str = "",
    sampling: SamplingConfig = SAMPLING,
    callback: Callable[[StepState], Any] | None = None,
) -> Base:
    """The base of a pipeline with a ``base`` UNet.

    Args:
        pipe: a ``StreamingT2VPipeline``; its ``base``, ``vae``, ``text_encoder`` and ``cfg`` are used.
        negative_prompt: what to stay away from.
        sampling: sampler, steps and guidance.
        callback: called with a ``StepState`` after each step.
    """

    def base(prompt: str, seed: int) -> Tensor:
        return finish(separate_steps(pipe, prompt, seed, negative_prompt, sampling), callback)

    return base
