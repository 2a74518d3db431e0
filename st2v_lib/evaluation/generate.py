"""Many videos at once: base chunks and streams in batches, every video with noise of its own.

A video's noise depends on its own seed and the chunk alone, so neither the batch nor the process it falls in matters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from st2v_lib.backbone import decode_latents, vae_downscale
from st2v_lib.baselines.free_noise import reschedule_noise, windowed_attention
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.sampling import (
    Contexts,
    chunk_generator,
    denoise_chunk,
    make_predictor,
    make_scheduler,
    randn,
    step_noise,
)
from st2v_lib.streaming import Models, StreamState, next_chunk, start_stream


def video_seed(seed: int, index: int) -> int:
    """The seed of video ``index`` in the run with that seed."""
    return seed * 1_000_003 + index


def tokens(pipe, prompts: Sequence[str]) -> Tensor:
    """Text tokens of several prompts, ``n l d``."""
    return torch.cat([pipe.encode_text(p) for p in prompts])


def nulls(pipe, count: int) -> Tensor:
    """The empty prompt's tokens, ``n l d``."""
    return pipe.encode_text("").expand(count, -1, -1)


def models_of(pipe) -> Models:
    """The pipeline's networks with a scheduler of their own."""
    return pipe.models(make_scheduler(pipe.cfg.scheduler, pipe.cfg.sampling.sampler))


def noise_of(
    models: Models, cfg: StreamingT2VConfig, seeds: Sequence[int], chunk: int, step_frames: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Noise of one chunk of several videos: the initial one ``n z f h w``, and what the steps add (``step_noise``).

    Args:
        models, cfg: the networks and the sampler, sizes and sampling.
        seeds: one for each video.
        chunk: its index.
        step_frames: of the steps' noise, if not the chunk's.
    """
    cells, channels = cfg.size // vae_downscale(models.vae), models.unet.config.out_channels
    generators, frames = [chunk_generator(s, chunk) for s in seeds], cfg.chunk_frames
    device = models.device or models.unet.device
    noise = torch.cat([randn((1, channels, frames, cells, cells), g, device) for g in generators])
    shape = (step_frames or frames, channels, cells, cells)
    return noise, step_noise(generators, models.scheduler, cfg.sampling, shape, device)


def denoised(pipe, models: Models, prompts: Sequence[str], noise: Tensor, variance: Tensor | None) -> Tensor:
    """What the base model makes of noise ``n z f h w`` for these prompts; ``variance`` is what the steps add."""
    s, predict = pipe.cfg.sampling, make_predictor(models.unet)
    text = Contexts(tokens(pipe, prompts), nulls(pipe, len(prompts)), scale=s.guidance_scale)
    steps = s.num_inference_steps
    return denoise_chunk(predict, models.scheduler, noise, text, steps, s.eta, variance_noise=variance)


@torch.no_grad()
def base_chunks(pipe, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Stage 1 of several videos, ``n 16 3 h w`` in [-1, 1] on the CPU."""
    models = models_of(pipe)
    latents = denoised(pipe, models, prompts, *noise_of(models, pipe.cfg, seeds, 0))
    return decode_latents(models.vae, latents, 64).float().cpu()


@torch.no_grad()
def free_noise_videos(pipe, prompts: Sequence[str], seeds: Sequence[int], num_frames: int) -> Tensor:
    """FreeNoise's videos, ``n f 3 h w`` in [-1, 1] on the CPU; the noise of :func:`base_chunks` over and over."""
    models, chunk = models_of(pipe), pipe.cfg.chunk_frames
    noise, variance = noise_of(models, pipe.cfg, seeds, 0, num_frames)
    long = [reschedule_noise(one[None], num_frames, chunk_generator(seed, 1)) for one, seed in zip(noise, seeds)]
    with windowed_attention(models.unet, chunk):
        latents = denoised(pipe, models, prompts, torch.cat(long), variance)
    return torch.cat([decode_latents(models.vae, one[None], 64).float().cpu() for one in latents])


@dataclass
class Stream:
    """Several continued videos.

    Attributes:
        video: ``n f 3 h w`` in [-1, 1] on the CPU, first chunks included.
        seams: first frame of each chunk but the first.
        carried, discarded: for each chunk the frames it was given and what it made of them, ``n k 3 h w``.
    """

    video: Tensor
    seams: list[int]
    carried: list[Tensor] = field(default_factory=list)
    discarded: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def continue_videos(
    pipe,
    prompts: Sequence[str],
    first: Tensor,
    seeds: Sequence[int],
    num_frames: int,
    anchor: Tensor | None = None,
    before: Callable[[StreamState], StreamState] | None = None,
    overlaps: bool = False,
) -> Stream:
    """Stage 2 of several videos with what the pipeline's config switches on.

    Args:
        pipe: the pipeline.
        prompts: one for each video.
        first: first chunks ``n 16 3 h w`` in [-1, 1].
        seeds: one for each video.
        num_frames: length of each, cut to fit.
        anchor: frames ``n k 3 h w`` that APM keeps to; ``None`` for the first.
        before: changes the state before each chunk (noise on the condition, say).
        overlaps: keep carried and discarded frames.
    """
    models, sampling = models_of(pipe), pipe.cfg.sampling
    text, null = tokens(pipe, prompts), nulls(pipe, len(prompts))
    state = start_stream(models, first, seeds[0], anchor, num_cond_frames=pipe.cfg.chunk_frames // 2)
    if models.follow is not None:  # the first chunk that is made keeps to what its own follower says, too
        state = models.follow(models, state)
    blocks, out, steps, length = [first.cpu()], Stream(first, []), [], first.shape[1]
    while length < num_frames:
        if before is not None:
            state = before(state)
        carried = state.cond
        noise, variance = noise_of(models, pipe.cfg, seeds, state.chunk_index)
        keep = (lambda step: steps.append(step.latents)) if overlaps else None
        block, state = next_chunk(
            models, state, text, null, sampling, noise=noise, variance_noise=variance, callback=keep
        )
        out.seams.append(length)
        blocks.append(block.cpu())
        length += block.shape[1]
        if overlaps:
            again = decode_latents(models.vae, steps[-1][:, :, : carried.shape[1]], 64).float()
            out.carried.append(carried.cpu())
            out.discarded.append(again.cpu())
            steps.clear()
    video = torch.cat(blocks, dim=1)[:, :num_frames]
    return dataclasses.replace(out, video=video, seams=[s for s in out.seams if s < num_frames])
