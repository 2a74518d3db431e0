"""Denoising one chunk: schedulers, guidance and the loop, as plain functions (paper §4.1-4.2, eq. 12, and §10)."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from st2v_lib.apm import apm_processors, holding
from st2v_lib.backbone import StreamingUNet
from st2v_lib.baselines.rival import Rival
from st2v_lib.cam import Cam
from st2v_lib.config import SamplingConfig, SchedulerConfig
from st2v_lib.replay import replayed

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents b c f h w, timestep, tokens (n b) l d of n branches


@dataclass(frozen=True)
class StepState:
    """What a callback sees after each denoising step.

    Attributes:
        index, num_steps: the step just done, from 0, and how many there are.
        timestep: the noise level it started from.
        latents: the chunk after the step, ``b c f h w``.
        x0: the clean latents the step predicted, if the scheduler tells them.
    """

    index: int
    num_steps: int
    timestep: int
    latents: Tensor
    x0: Tensor | None


@dataclass(frozen=True)
class Contexts:
    """Tokens of the guidance branches, ``b l d`` each, and their weights (paper eq. 12).

    Attributes:
        text, null_text: prompt and negative (or empty) prompt.
        anchor, null_anchor: APM's tokens of the anchor frame and of the grey image; ``None`` without APM.
        scale, anchor_scale: weights of text and anchor; ``anchor_scale=None`` means the same as ``scale``.
    """

    text: Tensor
    null_text: Tensor
    anchor: Tensor | None = None
    null_anchor: Tensor | None = None
    scale: float = 7.5
    anchor_scale: float | None = None

    @functools.cached_property
    def tokens(self) -> Tensor:
        """All branches in one batch ``(n b) l d``; the same tensor whenever it is asked for."""
        return torch.cat(self.branches())

    def branches(self) -> list[Tensor]:
        """Tokens of each branch, the unconditional one first; one branch alone when guidance changes nothing.

        Raises:
            ValueError: if only one of the two anchors is given.
        """
        if (self.anchor is None) != (self.null_anchor is None):
            raise ValueError("give both anchor and null_anchor tokens, or neither")
        if self.anchor is None:
            null, middle, full = self.null_text, None, self.text
        else:
            null = torch.cat([self.null_text, self.null_anchor], dim=1)
            middle = torch.cat([self.text, self.null_anchor], dim=1)
            full = torch.cat([self.text, self.anchor], dim=1)
        if middle is None or self.anchor_scale in (None, self.scale):
            return [full] if self.scale == 1 else [null, full]
        return [null, middle, full]


def make_scheduler(config: SchedulerConfig, sampler: str = "ddim") -> SchedulerMixin:
    """diffusers' scheduler for ``sampler``: ``"ddim"``, or ``"dpm++"`` (DPM-Solver++, second order, multistep).

    ``"sde-dpm++"`` is the latter with fresh noise in every step, as DDIM has with eta 1, which washes out errors that
    would be handed on from chunk to chunk.

    Raises:
        ValueError: for another name.
    """
    shared = dict(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        rescale_betas_zero_snr=config.rescale_betas_zero_snr,
        timestep_spacing=config.timestep_spacing,
        steps_offset=config.steps_offset,
    )
    if sampler == "ddim":
        return DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=config.set_alpha_to_one)
    if sampler in ("dpm++", "sde-dpm++"):
        algorithm = sampler.replace("dpm++", "dpmsolver++")
        return DPMSolverMultistepScheduler(**shared, algorithm_type=algorithm, solver_order=2)
    raise ValueError(f"unknown sampler {sampler!r}; choose 'ddim', 'dpm++' or 'sde-dpm++'")


def adds_noise(scheduler: SchedulerMixin, eta: float) -> bool:
    """Whether steps draw noise of their own: DDIM with eta > 0, and the stochastic DPM-Solver++."""
    takes = inspect.signature(scheduler.step).parameters
    if "eta" in takes:
        return eta > 0
    return "variance_noise" in takes and scheduler.config.get("algorithm_type", "").startswith("sde")


def chunk_generator(seed: int, chunk_index: int) -> torch.Generator:
    """A CPU generator for one chunk, a function of ``(seed, chunk_index)`` only: chunk k is the same in any video.

    Raises:
        ValueError: for a negative seed or index.
    """
    if seed < 0 or chunk_index < 0:
        raise ValueError(f"expected seed and chunk_index >= 0, got {seed} and {chunk_index}")
    state = np.random.SeedSequence((seed, chunk_index)).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state >> 1))


def randn(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor | torch.device) -> Tensor:
    """Standard normal float32 noise, drawn on the CPU by contract and then moved: the same on any device."""
    device = like.device if isinstance(like, Tensor) else like
    return torch.randn(shape, generator=generator, device=generator.device if generator else "cpu").to(device)


def step_noise(
    generators: Sequence[torch.Generator],
    scheduler: SchedulerMixin,
    sampling: SamplingConfig,
    shape: tuple[int, ...],
    like: Tensor | torch.device,
) -> Tensor | None:
    """What stochastic steps add, for several videos in one batch: each draws what it would draw alone.

    Args:
        generators: one for each video, after its initial noise.
        scheduler, sampling: the sampler, its steps and eta.
        shape: of one video's noise in one step, ``(f, c, h, w)``.
        like: a tensor on the device, or the device.

    Returns:
        ``steps (b f) c h w``, the ``variance_noise`` of ``denoise_steps``; ``None`` where steps draw nothing.
    """
    if not adds_noise(scheduler, sampling.eta):
        return None
    drawn = [[randn(shape, g, like) for _ in range(sampling.num_inference_steps)] for g in generators]
    return torch.stack([torch.cat(step) for step in zip(*drawn)])


def make_predictor(unet: StreamingUNet, cam: Cam | Rival | None = None, cond: Tensor | None = None) -> Predict:
    """The network as a function of latents, timestep and tokens, for one chunk.

    What is constant over a chunk is computed once: CAM's features of the pixels here, APM's mixed contexts when other
    tokens come than in the step before; and what guidance branches share, once for all of them. On
    CUDA steps are recorded and replayed (:mod:`st2v_lib.replay`).

    Args:
        unet: the main UNet, with CAM and APM attached as wanted.
        cam: the short-term memory; its conditioning frames are encoded here.
        cond: the last frames of the previous chunk, ``b n 3 H W`` in [-1, 1]; needed with ``cam``.

    Raises:
        ValueError: if only one of ``cam`` and ``cond`` is given.
    """
    if (cam is None) != (cond is None):
        raise ValueError("give both cam and its conditioning frames, or neither")
    cond_features = None if cam is None else cam.encode_condition(cond)
    layers, mixed, mixed_from = [], [], None
    dtype = unet.dtype  # asked once: diffusers walks through all modules for it

    def predict(latents: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        nonlocal layers, mixed, mixed_from
        if tokens is not mixed_from:
            layers, mixed_from = apm_processors(unet), tokens
            mixed = [layer.mix(tokens.to(dtype)) for layer in layers]
        x, tokens = latents.to(dtype), tokens.to(dtype)
        features = None if cam is None else cam(x, timestep, tokens, cond_features=cond_features)
        with holding(layers, mixed):
            return unet(x, timestep, tokens, cam_features=features).to(latents.dtype)

    return replayed(predict, *(net for net in (unet, cam) if net is not None))


@torch.no_grad()  # here and not only around generators of steps, which keep no mode between their steps
def guided(predict: Predict, latents: Tensor, timestep: Tensor, contexts: Contexts) -> Tensor:
    """Classifier-free guidance with all branches in one batch (paper eq. 12).

    Two branches, (null, null) and (text, anchor), when both weights agree, where eq. 12 telescopes to them; three,
    with (text, null) between, when they differ.
    """
    branches = len(contexts.tokens) // len(contexts.text)
    out = predict(latents, timestep, contexts.tokens).chunk(branches)
    if branches == 1:
        return out[0]
    if branches == 2:
        null, full = out
        return null + contexts.scale * (full - null)
    null, text, full = out
    return null + contexts.scale * (text - null) + contexts.anchor_scale * (full - text)


@torch.no_grad()
def denoise_steps(
    predict: Predict,
    scheduler: SchedulerMixin,
    latents: Tensor,
    contexts: Contexts,
    num_inference_steps: int = 50,
    eta: float = 1.0,
    generator: torch.Generator | None = None,
    variance_noise: Tensor | None = None,
    given: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[StepState]:
    """Denoises one chunk and yields after each step; the last step's latents are clean.

    Args:
        predict: what ``make_predictor`` gives.
        scheduler: a diffusers scheduler, of which a copy is used: chunks may be denoised in turns.
        latents: standard normal noise ``b c f h w``.
        contexts: tokens and weights of the guidance branches.
        num_inference_steps: denoising steps.
        eta: 0 for deterministic DDIM, 1 for the paper's setting; ignored by schedulers without it.
        generator: a CPU generator; each stochastic step draws one noise, also the last, for frames flattened as
            ``(b f) c h w``.
        variance_noise: these noises instead, ``steps (b f) c h w``.
        given: changes the noisy latents before each step (``baselines.replacement``).
    """
    b, c, f, h, w = latents.shape
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(num_inference_steps)  # on the CPU: the scheduler's arithmetic makes no card wait
    takes, noisy = inspect.signature(scheduler.step).parameters, adds_noise(scheduler, eta)
    x = latents * scheduler.init_noise_sigma
    for i, (t, there) in enumerate(zip(scheduler.timesteps, scheduler.timesteps.to(x.device))):
        if given is not None:
            x = given(x, there)
        prediction = guided(predict, scheduler.scale_model_input(x, t), there, contexts)
        extra = {}
        if "eta" in takes:
            # at zero SNR and eta 1 DDIM takes the root of an exact 0, which rounding can make negative
            extra["eta"] = eta * (1 - 1e-6) if scheduler.alphas_cumprod[int(t)] == 0 else eta
        if noisy:
            noise = variance_noise[i] if variance_noise is not None else randn((b * f, c, h, w), generator, x)
            extra["variance_noise"] = rearrange(noise, "(b f) c h w -> b c f h w", b=b)
        elif "eta" not in takes and "generator" in takes:
            extra["generator"] = generator
        out = scheduler.step(prediction, t, x, **extra)
        x = out.prev_sample
        x0 = getattr(out, "pred_original_sample", None)
        if x0 is None and getattr(scheduler, "model_outputs", None):
            x0 = scheduler.model_outputs[-1]
        yield StepState(i, num_inference_steps, int(t), x, x0)


def denoise_chunk(
    *arguments: Any, callback: Callable[[StepState], None] | None = None, **options: Any
) -> Float[Tensor, "b c f h w"]:
    """``denoise_steps`` to its end; calls ``callback`` after each step and returns the clean latents."""
    for step in denoise_steps(*arguments, **options):
        if callback is not None:
            callback(step)
    return step.latents
