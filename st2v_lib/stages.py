"""The stages of a whole video as plain generators: a base chunk and streaming (1, 2), enhancement (3) (paper §4).

Frames come out as they are made; what is held between two blocks does not grow with the video.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from st2v_lib.backbone import StreamingUNet, decode_latents, vae_downscale
from st2v_lib.blending import stage_key
from st2v_lib.config import EnhancerConfig, StreamingT2VConfig
from st2v_lib.sampling import Contexts, StepState, chunk_generator, denoise_steps, make_predictor, randn
from st2v_lib.streaming import Models, StreamState, finish, next_chunk, start_stream
from st2v_lib.wavefront import EnhancerStream, Wavefront, batch_denoiser

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
    return cfg.chunk_frames // 2 if models.cam is None else models.cam.config.num_cond_frames


def next_frame(state: StreamState, models: Models, cfg: StreamingT2VConfig) -> int:
    """Where in the video the next chunk's first new frame is."""
    return cfg.chunk_frames + (state.chunk_index - 1) * (cfg.chunk_frames - carried_frames(models, cfg))


def stream_cost(num_frames: int, models: Models, cfg: StreamingT2VConfig, has_first: bool, resumed: bool) -> int:
    """Denoising steps of stages 1 and 2 for a video of that length."""
    rest = num_frames - (0 if resumed else cfg.chunk_frames)
    chunks = math.ceil(rest / (cfg.chunk_frames - carried_frames(models, cfg))) + (not has_first and not resumed)
    return chunks * cfg.sampling.num_inference_steps


@torch.no_grad()
def base_steps(
    models: Models, cfg: StreamingT2VConfig, text: Tensor, null_text: Tensor, seed: int = 0
) -> Generator[StepState, None, Tensor]:
    """Stage 1, a step at a time: one chunk of the base model, without memories (paper §4, initialisation).

    Args:
        models: the networks; CAM and APM are not used.
        cfg: size, frames and sampling.
        text, null_text: tokens ``1 l d``.
        seed: chunk 0 of the video with that seed.

    Returns:
        Frames ``1 f 3 h w`` in [-1, 1].
    """
    device, cells = models.device or models.unet.device, cfg.size // vae_downscale(models.vae)
    generator, channels = chunk_generator(seed, 0), models.unet.config.out_channels
    for step in denoise_steps(
        make_predictor(models.unet),
        models.scheduler,
        randn((1, channels, cfg.chunk_frames, cells, cells), generator, device),
        Contexts(text, null_text, scale=cfg.sampling.guidance_scale),
        cfg.sampling.num_inference_steps,
        cfg.sampling.eta,
        generator,
    ):
        yield step
    return decode_latents(models.vae, step.latents).float()


def base_chunk(
    models: Models,
    cfg: StreamingT2VConfig,
    text: Tensor,
    null_text: Tensor,
    seed: int = 0,
    callback: Callable[[StepState], None] | None = None,
) -> Tensor:
    """``base_steps`` to its end; calls ``callback`` after each step."""
    return finish(base_steps(models, cfg, text, null_text, seed), callback)


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
        text = encode(prompt_at(next_frame(state, models, cfg)))
        frames, state = next_chunk(models, state, text, null_text, cfg.sampling, callback=callback)
        yield frames[:, : min(left, frames.shape[1])].cpu(), state
        left -= frames.shape[1]


def enhancer_stream(
    vae: AutoencoderKL,
    unet: StreamingUNet,
    config: EnhancerConfig,
    encode_text: Callable[[str], Tensor],
    prompt_at: Callable[[int], str],
    negative_prompt: str = "",
    seed: int = 0,
    num_frames: int | None = None,
    batch_size: int = 8,
    chunk_batch: int = 1,
) -> EnhancerStream:
    """Stage 3 as a thing to push frames into; a chunk has the prompt of its first frame. See ``enhance_blocks``."""
    encode = functools.lru_cache(8)(encode_text)
    null_text, key = encode(negative_prompt), stage_key(chunk_generator(seed, ENHANCER_NOISE))
    text = lambda chunk: encode(prompt_at(wavefront.start(chunk)))  # noqa: E731
    denoise = batch_denoiser(unet, text, null_text, config)
    wavefront = Wavefront(denoise, config, key, num_frames, chunk_batch)
    return EnhancerStream(vae, wavefront, batch_size, null_text.device)


def enhance_blocks(
    blocks: Iterable[Tensor],
    stream: EnhancerStream,
    on_chunk: Callable[[], object] | None = None,
    callback: Callable[[StepState], None] | None = None,
) -> Iterator[Tensor]:
    """Stage 3 (paper §4.3): yields enhanced frames ``b f 3 size size`` in [-1, 1], in batches, on the CPU.

    The same video as ``enhancer.enhance_video``, in constant memory, while the low-resolution frames come.

    Args:
        blocks: frames ``b m 3 h w`` in [-1, 1], in blocks of any length.
        stream: what ``enhancer_stream`` made.
        on_chunk: called after the network has seen a chunk, ``steps x chunks`` times.
        callback: called with a ``StepState`` then.
    """
    for block in itertools.chain(blocks, (None,)):
        if block is None:
            stream.end()
        else:
            stream.push(block)
        for step in stream.steps():
            if on_chunk is not None:
                on_chunk()
            if callback is not None:
                callback(step)
        yield from stream.pop()
