"""Stage 3: a text-to-video model as an SDEdit enhancer of a video of any length (paper §4.3).

The low-resolution video is upscaled, encoded, noised to a middle level and denoised again by DPM-Solver++(2M) SDE.
The state and its noise are global; only the network sees chunks, whose predictions are blended at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet3DConditionModel
from einops import rearrange
from torch import Tensor, nn

from st2v_lib.backbone import StreamingUNet, check_video, decode_latents, encode_frames, vae_downscale
from st2v_lib.blending import NAIVE, blend, boundary_cut, chunk_starts, frame_noise, overlaps, stage_key
from st2v_lib.canvas import crop_from_canvas, pad_to_canvas
from st2v_lib.config import EnhancerConfig
from st2v_lib.sampling import StepState

Denoise = Callable[[Tensor, int, int], Tensor]  # noisy chunk b c f h w, timestep, chunk index -> clean chunk


@dataclass(frozen=True)
class VpSchedule:
    """A variance-preserving schedule: x_t = alphas[t] · x0 + sigmas[t] · noise, with alpha² + sigma² = 1."""

    alphas: Tensor
    sigmas: Tensor

    def add_noise(self, x0: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Clean latents at that noise level."""
        return float(self.alphas[timestep]) * x0 + float(self.sigmas[timestep]) * noise

    def x0_from_v(self, x: Tensor, v: Tensor, timestep: int) -> Tensor:
        """Clean latents from a v-prediction: alpha · x - sigma · v."""
        return float(self.alphas[timestep]) * x - float(self.sigmas[timestep]) * v


def logsnr_cosine_interp(
    num: int = 1000, logsnr_max: float = 15.0, scale_min: float = 2.0, scale_max: float = 4.0
) -> VpSchedule:
    """The enhancer's schedule: a cosine in log-SNR, shifted for resolution, ending at zero SNR.

    The shift is that of images ``scale`` times larger, -2 ln(scale), with the scale's effect interpolated from
    ``scale_min`` at the clean end to ``scale_max`` at the noisy end.
    """
    t = torch.linspace(0, 1, num, dtype=torch.float64)
    start, end = math.atan(math.exp(-logsnr_max / 2)), math.atan(math.exp(logsnr_max / 2))
    logsnr = -2 * torch.log(torch.tan(start + t * (end - start)))
    logsnr = logsnr - 2 * ((1 - t) * math.log(scale_min) + t * math.log(scale_max))
    sigmas = torch.sigmoid(-logsnr).sqrt().float()
    sigmas[-1] = 1  # zero terminal SNR; float32 leaves no other difference
    return VpSchedule(alphas=(1 - sigmas**2).sqrt(), sigmas=sigmas)


def time_grid(num_steps: int, start_timestep: int = 599) -> Tensor:
    """Fractional timesteps of the network evaluations: ``num_steps + 1`` equally spaced values, the last dropped."""
    stride = (start_timestep + 1) / (num_steps + 1)
    return start_timestep - stride * torch.arange(num_steps, dtype=torch.float64)


def noise_ratios(schedule: VpSchedule, times: Tensor) -> Tensor:
    """sigma/alpha at fractional timesteps, interpolated in its logarithm, with a final 0; float64."""
    log_ratio = (schedule.sigmas.double() / schedule.alphas.double()).log()
    low, high = times.floor().long(), times.ceil().long()
    between = torch.lerp(log_ratio[low], log_ratio[high], times - low)
    return torch.cat([between.exp(), between.new_zeros(1)])


@dataclass(frozen=True)
class SolverStep:
    """One step of DPM-Solver++(2M) SDE, midpoint, eta 1, on the variance-exploding state X = x / alpha.

    Attributes:
        timestep: where the network is evaluated, an integer.
        scale: the network sees ``X / scale``, which is variance preserving.
        decay, gain, slope, noise: factors of X, of the prediction, of its change since the step before, of the noise.
    """

    timestep: int
    scale: float
    decay: float
    gain: float
    slope: float
    noise: float

    def advance(self, state: Tensor, x0: Tensor, previous: Tensor | None, noise: Tensor) -> Tensor:
        """X after the step; ``previous`` is the prediction of the step before. Frames do not mix."""
        state = self.decay * state + self.gain * x0
        if previous is not None:
            state = state + self.slope * (x0 - previous)
        return state + self.noise * noise


def solver_steps(schedule: VpSchedule, num_steps: int, start_timestep: int = 599) -> list[SolverStep]:
    """The solver's numbers; the last step has no ``advance``: its prediction is the result."""
    times = time_grid(num_steps, start_timestep)
    s, steps, h_previous = noise_ratios(schedule, times).tolist(), [], None
    for i, t in enumerate(times.round().long().tolist()):
        h = math.log(s[i] / s[i + 1]) if i < num_steps - 1 else math.inf
        gain = -math.expm1(-2 * h)
        slope = 0.0 if h_previous is None or h == math.inf else 0.5 * gain * (h / h_previous)
        decay = s[i + 1] / s[i] * math.exp(-h)
        steps.append(SolverStep(t, math.sqrt(1 + s[i] ** 2), decay, gain, slope, s[i + 1] * math.sqrt(gain)))
        h_previous = h
    return steps


def start_scale(steps: Sequence[SolverStep], official: bool = False) -> float:
    """X = x · this at the start; ``official`` is the released sampler's slip, sigma/alpha in place of 1/alpha."""
    return math.sqrt(steps[0].scale ** 2 - 1) if official else steps[0].scale


@torch.no_grad()
def sample_2m_sde(
    x: Tensor,
    predict_x0: Callable[[Tensor, int], Tensor],
    draw_noise: Callable[[int], Tensor],
    schedule: VpSchedule,
    num_steps: int,
    start_timestep: int = 599,
    official_start_scale: bool = False,
    callback: Callable[[StepState], None] | None = None,
) -> Tensor:
    """DPM-Solver++(2M) SDE from a middle noise level.

    Args:
        x: latents at ``start_timestep``, variance preserving.
        predict_x0: clean latents from (x, integer timestep).
        draw_noise: standard normal noise of the shape of ``x`` for step i; asked for all steps but the last.
        schedule: noise levels.
        num_steps: network evaluations.
        start_timestep: where the schedule is entered.
        official_start_scale: see ``start_scale``.
        callback: called with a ``StepState`` after each step; its latents are X.

    Returns:
        Clean latents.
    """
    steps = solver_steps(schedule, num_steps, start_timestep)
    state, previous = x * start_scale(steps, official_start_scale), None
    for i, step in enumerate(steps):
        x0 = predict_x0(state / step.scale, step.timestep)
        state = step.advance(state, x0, previous, draw_noise(i)) if i < num_steps - 1 else x0
        previous = x0
        if callback is not None:
            callback(StepState(i, num_steps, step.timestep, state, x0))
    return state


def enhance_latents(
    latents: Tensor,
    denoise: Denoise,
    config: EnhancerConfig,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    step_noise: Tensor | None = None,
    cuts: Sequence[Sequence[int]] | None = None,
    schedule: VpSchedule | None = None,
    callback: Callable[[StepState], None] | None = None,
) -> Tensor:
    """SDEdit of a whole video in overlapping chunks (paper §4.3); ``wavefront`` does the same in a stream.

    With ``config.blend_law`` ``"code"`` or ``"paper"`` the state is one video and each step's clean predictions are
    blended with random cuts. ``"B"`` and ``"B+S"`` are the naive variants of §9.3: every chunk keeps a trajectory of
    its own, the noise is drawn for each chunk or shared by the frames chunks have in common, and in the end an
    overlap is taken from its left chunk.

    Args:
        latents: clean latents of the upscaled video ``b c f h w``.
        denoise: clean chunk from (noisy chunk, integer timestep, chunk index).
        config: chunking, blending and the solver's numbers.
        generator: CPU generator; draws the key that all noise and cuts follow from (``blending.frame_noise``).
        noise: SDEdit noise in place of the key's, as ``latents``.
        step_noise: solver noise in place of the key's, ``steps-1 b c f h w``.
        cuts: blending cuts in place of the key's, one for each step and chunk.
        schedule: noise levels; ``None`` for ``logsnr_cosine_interp()``.
        callback: called with a ``StepState`` after each step.

    Returns:
        Enhanced latents ``b c f h w``.
    """
    schedule, key = schedule or logsnr_cosine_interp(), stage_key(generator)
    num_frames, naive = latents.shape[2], config.blend_law in NAIVE
    size = min(config.chunk_frames, num_frames)
    starts = chunk_starts(num_frames, config.chunk_frames, config.overlap_frames)
    # which video frame each frame of the state is: a naive state holds all chunks side by side
    frames = torch.cat([torch.arange(s, s + size) for s in starts]) if naive else torch.arange(num_frames)
    offsets = [k * size for k in range(len(starts))] if naive else starts
    widths, law = overlaps(offsets, size), "code" if naive else config.blend_law
    shared, steps_done = config.blend_law != "B", 0

    def draw(given: Tensor | None, step: int) -> Tensor:
        if given is not None:
            return given[:, :, frames] if shared else given
        keys = frames.tolist() if shared else range(len(frames))
        return frame_noise(key, keys, step, (*latents.shape[:2], *latents.shape[3:]), latents)

    def predict_x0(x: Tensor, t: int) -> Tensor:
        nonlocal steps_done
        if cuts is None:
            now = [boundary_cut(key, k, steps_done, width, law) for k, width in enumerate(widths)]
        else:
            now = [int(c) for c in cuts[steps_done]]
        steps_done += 1
        chunks = [denoise(x[:, :, o : o + size].contiguous(), t, k) for k, o in enumerate(offsets)]
        return blend(chunks, offsets, now)

    noised = schedule.add_noise(latents[:, :, frames], draw(noise, 0), config.start_timestep)
    result = sample_2m_sde(
        noised,
        predict_x0,
        lambda i: draw(None if step_noise is None else step_noise[i], i + 1),
        schedule,
        config.num_inference_steps,
        config.start_timestep,
        config.official_start_scale,
        callback,
    )
    first = [int((frames == f).nonzero()[0]) for f in range(num_frames)]
    return result[:, :, first]


def guide_v(null: Tensor, text: Tensor, scale: float, rescale: float) -> Tensor:
    """Guidance, then the standard deviation is pulled by ``rescale`` to that of the text branch (one chunk each)."""
    out = null + scale * (text - null)
    dims = tuple(range(1, out.ndim))
    ratio = text.std(dim=dims, keepdim=True) / out.std(dim=dims, keepdim=True)
    return out * (rescale * ratio + (1 - rescale))


def unet_denoiser(
    unet: StreamingUNet, text: Tensor, null_text: Tensor, config: EnhancerConfig, schedule: VpSchedule | None = None
) -> Denoise:
    """The enhancer's network, v-predicting, as a ``Denoise``.

    Args:
        unet: the video model; both guidance branches run in one batch, one alone when the scale is 1.
        text, null_text: tokens ``b l d``.
        config: guidance scale and rescale.
        schedule: noise levels; ``None`` for ``logsnr_cosine_interp()``.
    """
    schedule = schedule or logsnr_cosine_interp()
    branches = [text] if config.guidance_scale == 1 else [null_text, text]
    dtype = unet.dtype  # asked once: diffusers walks through all modules for it
    tokens = torch.cat(branches).to(dtype)

    def denoise(x: Tensor, timestep: int, chunk_index: int) -> Tensor:
        v = unet(x.to(dtype), timestep, tokens).to(x.dtype)
        if len(branches) == 2:
            v = guide_v(*v.chunk(2), config.guidance_scale, config.guidance_rescale)
        return schedule.x0_from_v(x, v, timestep)

    return denoise


class _CroppedUpsample(nn.Module):
    """Nearest doubling, first and last row dropped, convolution."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, hidden_states: Tensor, output_size: object = None) -> Tensor:
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")[:, :, 1:-1])


def shape_quirks(unet: UNet3DConditionModel) -> UNet3DConditionModel:
    """Gives a stock UNet the released enhancer's geometry, in place: heights 90, 46, 24, 13 and back.

    Its down-samplers pad two rows and one column; its up-samplers drop a row above and below. Names stay stock.
    """
    for block in unet.down_blocks:
        for down in block.downsamplers or ():
            down.conv.padding = (2, 1)
    for block in unet.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers = nn.ModuleList(_CroppedUpsample(up.conv) for up in block.upsamplers)
    return unet


def upscale(video: Tensor, size: int | tuple[int, int], mode: str = "bilinear") -> Tensor:
    """A video ``b f 3 h w`` in [-1, 1] at ``size`` (height and width); the paper says bilinear, the code bicubic."""
    frames = rearrange(check_video(video), "b f c h w -> (b f) c h w").contiguous()  # the layout changes round-off
    frames = F.interpolate(frames, size, mode=mode, align_corners=False).clamp(-1, 1)
    return rearrange(frames, "(b f) c h w -> b f c h w", b=video.shape[0])


@torch.no_grad()
def enhance_video(
    video: Tensor,
    vae: nn.Module,
    unet: StreamingUNet,
    text: Tensor,
    null_text: Tensor,
    config: EnhancerConfig,
    generator: torch.Generator | None = None,
    batch_size: int | None = 1,
    callback: Callable[[StepState], None] | None = None,
) -> Tensor:
    """Upscales and enhances a video (paper §4.3). The device holds its latents, and ``batch_size`` large frames.

    Args:
        video: ``b f 3 h w`` in [-1, 1], the output of stage 2.
        vae, unet: the enhancer's networks.
        text, null_text: tokens ``b l d``.
        config: sizes and the solver's numbers. The network sees the video on a black canvas (``canvas``), which is
            removed.
        generator: CPU generator.
        batch_size: frames in the VAE at once; ``None`` for all.
        callback: called with a ``StepState`` after each step.

    Returns:
        The enhanced video ``b f 3 size size`` in [-1, 1], on the CPU.
    """
    size, down, together = config.size, vae_downscale(vae), batch_size or video.shape[1]
    large = (pad_to_canvas(upscale(part, size, config.upscale_mode), config, down) for part in video.split(together, 1))
    latents = torch.cat([encode_frames(vae, part, batch_size) for part in large], dim=2)
    denoise = unet_denoiser(unet, text, null_text, config)
    enhanced = enhance_latents(latents, denoise, config, generator, callback=callback)
    frames = (decode_latents(vae, part, batch_size) for part in enhanced.split(together, dim=2))
    return torch.cat([crop_from_canvas(part, size).cpu() for part in frames], dim=1)
