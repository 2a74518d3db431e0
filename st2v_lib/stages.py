"""The stages of a whole video as plain generators: a base chunk and streaming (1, 2), enhancement (3) (paper §4).

Frames come out as they are made; what is held between two blocks does not grow with the video. Only stage 3 keeps
something for every frame: its latents, because blending couples neighbouring chunks at every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from st2v_lib.backbone import StreamingUNet, decode_latents, encode_frames, vae_downscale
from st2v_lib.blending import chunk_starts
from st2v_lib.config import EnhancerConfig, StreamingT2VConfig
from st2v_lib.enhancer import enhance_latents, unet_denoiser, upscale
from st2v_lib.sampling import Contexts, StepState, chunk_generator, denoise_chunk, make_predictor, randn
from st2v_lib.streaming import Models, StreamState, next_chunk, start_stream

ENHANCER_NOISE = 2**31  # the enhancer draws from chunk_generator(seed, this), an index that no chunk reaches


class FrameStream:
    """Iterator over blocks of frames ``b f 3 h w`` in [-1, 1], on the CPU.

    Attributes:
        config: the config in use, sampling numbers included.
        state: all that the next block needs, of constant size; ``None`` before the first block.
        cost: denoising steps to be made, a progress bar's total; ``None`` for a stream without end.
    """

    def __init__(
        self,
        blocks: Iterator[tuple[Tensor, StreamState]],
        config: StreamingT2VConfig,
        state: StreamState | None = None,
        cost: int | None = None,
    ):
        self._blocks, self.config, self.state, self.cost = blocks, config, state, cost

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> Tensor:
        frames, self.state = next(self._blocks)
        return frames


def carried_frames(models: Models, cfg: StreamingT2VConfig) -> int:
    """Frames that a chunk repeats of the one before: CAM's number, half a chunk without a CAM."""
    return cfg.chunk_frames // 2 if models.cam is None else models.cam.extractor.config.num_cond_frames


def stream_cost(num_frames: int, models: Models, cfg: StreamingT2VConfig, has_first: bool, resumed: bool) -> int:
    """Denoising steps of stages 1 and 2 for a video of that length."""
    rest = num_frames - (0 if resumed else cfg.chunk_frames)
    chunks = math.ceil(rest / (cfg.chunk_frames - carried_frames(models, cfg))) + (not has_first and not resumed)
    return chunks * cfg.sampling.num_inference_steps


@torch.no_grad()
def base_chunk(
    models: Models,
    cfg: StreamingT2VConfig,
    text: Tensor,
    null_text: Tensor,
    seed: int = 0,
    callback: Callable[[StepState], None] | None = None,
) -> Tensor:
    """Stage 1: one chunk of the base model, without memories (paper §4, initialisation).

    Args:
        models: the networks; CAM and APM are not used.
        cfg: size, frames and sampling.
        text, null_text: tokens ``1 l d``.
        seed: chunk 0 of the video with that seed.
        callback: called with a ``StepState`` after each step.

    Returns:
        Frames ``1 f 3 h w`` in [-1, 1].
    """
    device, cells = models.device or models.unet.device, cfg.size // vae_downscale(models.vae)
    generator, channels = chunk_generator(seed, 0), models.unet.config.out_channels
    latents = denoise_chunk(
        make_predictor(models.unet),
        models.scheduler,
        randn((1, channels, cfg.chunk_frames, cells, cells), generator, device),
        Contexts(text, null_text, scale=cfg.sampling.guidance_scale),
        cfg.sampling.num_inference_steps,
        cfg.sampling.eta,
        generator,
        callback=callback,
    )
    return decode_latents(models.vae, latents).float()


def stream_blocks(
    models: Models,
    cfg: StreamingT2VConfig,
    encode_text: Callable[[str], Tensor],
    prompt_at: Callable[[int], str],
    negative_prompt: str = "",
    num_frames: int | None = None,
    seed: int = 0,
    first_chunk: Tensor | None = None,
    anchor: Tensor | None = None,
    state: StreamState | None = None,
    callback: Callable[[StepState], None] | None = None,
) -> Iterator[tuple[Tensor, StreamState]]:
    """Stages 1 and 2: yields blocks of frames and the state behind each, for ever or until ``num_frames``.

    Args:
        models: the networks.
        cfg: sizes and sampling.
        encode_text: a text to tokens ``1 l d``.
        prompt_at: the prompt at a frame; a chunk has that of its first new frame.
        negative_prompt: text of the guidance's null branch.
        num_frames: frames to yield; ``None`` never ends.
        seed: of all noise.
        first_chunk: ``1 f 3 h w`` in [-1, 1] in place of stage 1.
        anchor: frames that APM keeps to; ``None`` for the first.
        state: resumes a stream: no first chunk, the state's own seed.
        callback: called with a ``StepState`` after each step.
    """
    encode = functools.lru_cache(8)(encode_text)
    null_text, carried = encode(negative_prompt), carried_frames(models, cfg)
    left = math.inf if num_frames is None else num_frames
    if state is None:
        if first_chunk is None:
            first_chunk = base_chunk(models, cfg, encode(prompt_at(0)), null_text, seed, callback)
        state = start_stream(models, first_chunk, seed, anchor, carried)
        yield first_chunk.cpu(), state
        left -= first_chunk.shape[1]
    while left > 0:
        first_frame = cfg.chunk_frames + (state.chunk_index - 1) * (cfg.chunk_frames - carried)
        text = encode(prompt_at(first_frame))
        frames, state = next_chunk(models, state, text, null_text, cfg.sampling, callback=callback)
        yield frames[:, : min(left, frames.shape[1])].cpu(), state
        left -= frames.shape[1]


@torch.no_grad()
def enhance_blocks(
    video: Tensor,
    vae: AutoencoderKL,
    unet: StreamingUNet,
    config: EnhancerConfig,
    encode_text: Callable[[str], Tensor],
    prompt_at: Callable[[int], str],
    negative_prompt: str = "",
    seed: int = 0,
    batch_size: int = 8,
    on_chunk: Callable[[], object] | None = None,
    callback: Callable[[StepState], None] | None = None,
) -> Iterator[Tensor]:
    """Stage 3 (paper §4.3): yields enhanced frames ``b f 3 size size`` in [-1, 1], in batches, on the CPU.

    The same video as ``enhancer.enhance_video``, but pixels are encoded and decoded a few frames at a time, and the
    prompt may change: a chunk has that of its first frame.

    Args:
        video: ``b f 3 h w`` in [-1, 1], any length.
        vae, unet: the enhancer's networks.
        config: sizes and the solver's numbers.
        encode_text, prompt_at, negative_prompt: as for ``stream_blocks``.
        seed: of all noise.
        batch_size: frames in the VAE at once.
        on_chunk: called after the network has seen a chunk, ``steps x chunks`` times.
        callback: called with a ``StepState`` after each step.
    """
    encode = functools.lru_cache(8)(encode_text)
    null_text = encode(negative_prompt)
    starts = chunk_starts(video.shape[1], config.chunk_frames, config.overlap_frames)
    denoisers = [unet_denoiser(unet, encode(prompt_at(start)), null_text, config) for start in starts]

    def denoise(x: Tensor, timestep: int, chunk_index: int) -> Tensor:
        x0 = denoisers[chunk_index](x, timestep, chunk_index)
        if on_chunk is not None:
            on_chunk()
        return x0

    bar = (max(config.canvas_width or 0, config.size) - config.size) // 2  # black, left and right
    latents = []
    for part in video.split(batch_size, dim=1):
        large = upscale(part.to(null_text.device), config.size)
        latents.append(encode_frames(vae, F.pad(large, (bar, bar), value=-1.0)))
    noise = chunk_generator(seed, ENHANCER_NOISE)
    enhanced = enhance_latents(torch.cat(latents, dim=2), denoise, config, noise, callback=callback)
    del latents
    for part in enhanced.split(batch_size, dim=2):
        yield decode_latents(vae, part)[..., bar : bar + config.size].float().cpu()
