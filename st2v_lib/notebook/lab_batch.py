"""Two arms in one batch: one call of the UNet for both, each with its own memories, prompt, guidance and noise.

Arms that take the same steps with the same sampler share every call; rows of the batch differ in what is injected, in
the context each layer sees and in their weights. Each row is what the streaming loop alone would make of it, up to
round-off. Stage 3 is here too, as a generator: ``enhancer.enhance_latents`` one network call at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from st2v_lib.apm import apm_processors, holding
from st2v_lib.backbone import StreamingUNet, decode_latents, encode_frames, vae_downscale
from st2v_lib.baselines.replacement import replacing
from st2v_lib.blending import NAIVE, blend, boundary_cut, chunk_starts, frame_noise, overlaps
from st2v_lib.config import EnhancerConfig, SamplingConfig
from st2v_lib.enhancer import Denoise, logsnr_cosine_interp, solver_steps, start_scale
from st2v_lib.sampling import Contexts, Predict, StepState, chunk_generator, denoise_steps, randn, step_noise
from st2v_lib.streaming import Models, StreamState


@dataclass(frozen=True)
class ArmChunk:
    """What one arm brings to its next chunk.

    Attributes:
        models: the networks; all arms of a batch share the UNet, the VAE and APM.
        state: what its last chunk left, for one video.
        text, null_text: tokens ``1 l d``.
        sampling: steps and sampler are those of the whole batch, guidance is its own.
    """

    models: Models
    state: StreamState
    text: Tensor
    null_text: Tensor
    sampling: SamplingConfig


@dataclass(frozen=True)
class RowContexts(Contexts):
    """``Contexts`` whose two weights are tensors ``b 1 1 1 1``, a number for each row."""

    scale: Any = None
    anchor_scale: Any = None

    def branches(self) -> list[Tensor]:
        """Two branches where each row's weights agree, else three; never one."""
        if self.anchor is None:
            return [self.null_text, self.text]
        null, middle, full = (
            torch.cat(pair, dim=1)
            for pair in ((self.null_text, self.null_anchor), (self.text, self.null_anchor), (self.text, self.anchor))
        )
        return [null, full] if bool((self.scale == self.anchor_scale).all()) else [null, middle, full]


def row_contexts(arms: Sequence[ArmChunk]) -> RowContexts:
    """The tokens and weights of all arms; an arm without APM has anchors of zeros, which nothing reads."""
    has = [arm.state.anchor is not None and arm.models.apm is not None for arm in arms]
    anchors: list[Tensor | None] = [None, None]
    if any(has):
        blank = torch.zeros_like(arms[has.index(True)].state.anchor)
        anchors = [
            torch.cat([getattr(arm.state, name) if own else blank for arm, own in zip(arms, has)])
            for name in ("anchor", "null_anchor")
        ]
    text, null = (torch.cat([getattr(arm, name) for arm in arms]) for name in ("text", "null_text"))
    weights = [
        (a.sampling.guidance_scale, a.sampling.anchor_guidance_scale if own else None) for a, own in zip(arms, has)
    ]
    scale, anchor = (
        torch.tensor([pair[i] if pair[i] is not None else pair[0] for pair in weights]).view(-1, 1, 1, 1, 1).to(text)
        for i in (0, 1)
    )
    return RowContexts(text, null, *anchors, scale, anchor)


def joint_predictor(unet: StreamingUNet, arms: Sequence[ArmChunk]) -> Predict:
    """The network for all arms at once: latents of each arm, tokens and predictions ``(branch arm)``."""
    b, text_len, frames = len(arms), arms[0].text.shape[1], arms[0].state.chunk_frames
    memories = list({id(arm.models.cam): arm.models.cam for arm in arms if arm.models.cam is not None}.values())
    groups = [(cam, [i for i, arm in enumerate(arms) if arm.models.cam is cam]) for cam in memories]
    seen = [cam.encode_condition(torch.cat([arms[i].state.cond for i in own])) for cam, own in groups]
    without = [i for i, arm in enumerate(arms) if arm.models.apm is None]
    contexts: list[Tensor] = []

    def rows(own: list[int], count: int) -> list[int]:
        return [branch * b + i for branch in range(count // b) for i in own]

    def injector(place: int, read: list[tuple[list[int], list[Tensor]]]):
        def inject(hidden: Tensor, _: Tensor) -> Tensor:
            parts = rearrange(hidden, "(r f) c h w -> r f c h w", f=frames).clone()
            for (cam, _), (at, features) in zip(groups, read):
                new = cam.injectors[place](parts[at].flatten(0, 1), features[place])
                parts[at] = rearrange(new, "(r f) c h w -> r f c h w", f=frames)
            return parts.flatten(0, 1)

        return inject

    def predict(latents: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        layers, features = apm_processors(unet), None
        if not contexts:
            for layer in layers:
                mixed = layer.mix(tokens)
                mixed[rows(without, len(tokens))] = tokens[rows(without, len(tokens)), :text_len]
                contexts.append(mixed)
        if groups:
            read = []
            for (cam, own), cond in zip(groups, seen):
                at = rows(own, len(tokens))
                read.append((at, cam(latents[own], timestep, tokens[at], cond_features=cond)))
            features = read[0][1]  # as many as there are places; which rows get which, the injectors know
            unet.set_injectors([injector(place, read) for place in range(len(features))])
        if not layers:
            tokens = tokens[:, :text_len]
        with holding(layers, contexts):
            return unet(latents, timestep, tokens, cam_features=features)

    return predict


def pasted_rows(arms: Sequence[ArmChunk], noise: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What ``denoise_steps`` is given where an arm's carried frames are pasted in; ``None`` where none's are."""
    paste = {}
    for i, (models, state) in enumerate((arm.models, arm.state) for arm in arms):
        if models.replacement:
            known = encode_frames(models.vae, state.cond)
            paste[i] = replacing(known, noise[i : i + 1], models.scheduler.alphas_cumprod)

    def given(latents: Tensor, timestep: Tensor) -> Tensor:
        rows = enumerate(latents.split(1))
        return torch.cat([paste[i](row, timestep) if i in paste else row for i, row in rows])

    return given if paste else None


@torch.no_grad()
def joint_chunk(arms: Sequence[ArmChunk]) -> Generator[StepState, None, tuple[list[Tensor], list[StreamState]]]:
    """The next chunk of several videos in one batch, a denoising step at a time; noise as ``chunk_steps`` draws it.

    Returns:
        Each arm's new frames ``1 m 3 h w`` in [-1, 1], and each arm's next state.
    """
    first, sampling = arms[0], arms[0].sampling
    unet, vae = first.models.unet, first.models.vae
    for arm in arms:
        if arm.models.apm is not None:
            arm.models.apm.attach(unet)
    cells, channels = first.state.cond.shape[-1] // vae_downscale(vae), unet.config.out_channels
    f, generators = first.state.chunk_frames, [chunk_generator(a.state.seed, a.state.chunk_index) for a in arms]
    noise = torch.cat([randn((1, channels, f, cells, cells), g, first.text) for g in generators])
    variance = step_noise(generators, first.models.scheduler, sampling, (f, channels, cells, cells), first.text)
    for step in denoise_steps(
        joint_predictor(unet, arms), first.models.scheduler, noise, row_contexts(arms),
        sampling.num_inference_steps, sampling.eta, None, variance, pasted_rows(arms, noise),
    ):  # fmt: skip
        yield step
    video = decode_latents(vae, step.latents).float()
    blocks, states = [], []
    for arm, frames in zip(arms, video[:, None]):
        n = arm.state.cond.shape[1]
        after = dataclasses.replace(arm.state, chunk_index=arm.state.chunk_index + 1, cond=frames[:, -n:].clone())
        states.append(after if arm.models.follow is None else arm.models.follow(arm.models, after))
        blocks.append(frames[:, n:])
    return blocks, states


@torch.no_grad()
def enhance_steps(latents: Tensor, denoise: Denoise, config: EnhancerConfig, key: int) -> Generator[int, None, Tensor]:
    """``enhancer.enhance_latents``, one call of the network at a time, with the noise and cuts of ``key``.

    Returns:
        Enhanced latents ``b c f h w``.
    """
    schedule, num_frames, naive = logsnr_cosine_interp(), latents.shape[2], config.blend_law in NAIVE
    size = min(config.chunk_frames, num_frames)
    starts = chunk_starts(num_frames, config.chunk_frames, config.overlap_frames)
    frames = [f for s in starts for f in range(s, s + size)] if naive else list(range(num_frames))
    offsets = [k * size for k in range(len(starts))] if naive else starts
    widths, law = overlaps(offsets, size), "code" if naive else config.blend_law
    keys = range(len(frames)) if config.blend_law == "B" else frames
    shape = (*latents.shape[:2], *latents.shape[3:])
    solver = solver_steps(schedule, config.num_inference_steps, config.start_timestep)
    x = schedule.add_noise(latents[:, :, frames], frame_noise(key, keys, 0, shape, latents), config.start_timestep)
    state, previous = x * start_scale(solver, config.official_start_scale), None
    for i, step in enumerate(solver):
        chunks = []
        for k, o in enumerate(offsets):
            chunks.append(denoise((state[:, :, o : o + size] / step.scale).contiguous(), step.timestep, k))
            yield i
        cuts = [boundary_cut(key, k, i, width, law) for k, width in enumerate(widths)]
        x0 = blend(chunks, offsets, cuts)
        noise = frame_noise(key, keys, i + 1, shape, latents) if i < len(solver) - 1 else None
        state = x0 if noise is None else step.advance(state, x0, previous, noise)
        previous = x0
    return state[:, :, [frames.index(f) for f in range(num_frames)]]
