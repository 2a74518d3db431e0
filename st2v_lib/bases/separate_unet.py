"""Stage 1 by a UNet of its own (paper §4): the released model starts with ModelScope's untouched one.

Phase 2 of its training changed the spatial layers of the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from st2v_lib.backbone import decode_latents, vae_downscale
from st2v_lib.bases import Base
from st2v_lib.config import SamplingConfig
from st2v_lib.sampling import Contexts, chunk_generator, denoise_chunk, make_predictor, make_scheduler, randn

SAMPLING = SamplingConfig(sampler="dpm++", num_inference_steps=50, eta=0.0, guidance_scale=9.0)  # the released numbers


def separate_unet(pipe, negative_prompt: str = "", sampling: SamplingConfig = SAMPLING, callback=None) -> Base:
    """The base of a pipeline with a ``base`` UNet.

    Args:
        pipe: a ``StreamingT2VPipeline``; its ``base``, ``vae``, ``text_encoder`` and ``cfg`` are used.
        negative_prompt: what to stay away from.
        sampling: sampler, steps and guidance.
        callback: called with a ``StepState`` after each step.
    """

    @torch.no_grad()
    def base(prompt: str, seed: int) -> Tensor:
        cfg, generator = pipe.cfg, chunk_generator(seed, 0)
        cells, channels = cfg.size // vae_downscale(pipe.vae), pipe.base.config.out_channels
        latents = denoise_chunk(
            make_predictor(pipe.base),
            make_scheduler(cfg.scheduler, sampling.sampler),
            randn((1, channels, cfg.chunk_frames, cells, cells), generator, pipe._execution_device),
            Contexts(pipe.encode_text(prompt), pipe.encode_text(negative_prompt), scale=sampling.guidance_scale),
            sampling.num_inference_steps,
            sampling.eta,
            generator,
            callback=callback,
        )
        return decode_latents(pipe.vae, latents).float().cpu()

    return base
