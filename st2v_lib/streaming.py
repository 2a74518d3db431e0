"""Stage 2, chunk after chunk: each sees the last frames of the one before and the first frame of all (paper §4).

The state between chunks is a small frozen value: keep it to resume, reuse it to branch, give another prompt with it
to change the story. What travels is decoded frames, never latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from st2v_lib.apm import Apm
from st2v_lib.backbone import StreamingUNet, check_video, decode_latents, encode_frames, vae_downscale
from st2v_lib.baselines.replacement import replacing
from st2v_lib.baselines.rival import Rival
from st2v_lib.cam import Cam
from st2v_lib.config import SamplingConfig
from st2v_lib.sampling import Contexts, StepState, chunk_generator, denoise_steps, make_predictor, randn

Value = TypeVar("Value")


@dataclass(frozen=True)
class Models:
    """The networks of stage 2; ``cam=None`` or ``apm=None`` leaves that memory out.

    Attributes:
        unet, vae, scheduler: the base model and its sampler.
        cam, apm: short-term and long-term memory.
        encode_image: frames ``b n 3 h w`` in [-1, 1] to CLIP embeddings ``b n e``; needed with ``apm``.
        device: where to compute; ``None`` for where the UNet is, which is elsewhere while it is off-loaded.
        follow: changes the state after each chunk (``baselines.last_frame_clip``); ``None`` leaves it.
        null_pixel: value of the image that stands for no anchor.
        replacement: paste the carried frames into the latents as well (``baselines.replacement``).
    """

    unet: StreamingUNet
    vae: AutoencoderKL
    scheduler: SchedulerMixin
    cam: Cam | Rival | None = None
    apm: Apm | None = None
    encode_image: Callable[[Tensor], Tensor] | None = None
    device: torch.device | None = None
    follow: Callable[[Models, StreamState], StreamState] | None = None
    null_pixel: float = 0.0
    replacement: bool = False

    def attach(self) -> None:
        """Wires CAM and APM into the UNet; cheap, and done before each chunk, so models may share a UNet."""
        if self.cam is not None:
            self.cam.attach(self.unet)
        if self.apm is not None:
            self.apm.attach(self.unet)


@dataclass(frozen=True)
class StreamState:
    """All that one chunk leaves to the next; of constant size.

    Attributes:
        seed: noise is drawn from ``(seed, chunk_index)``.
        chunk_index: the next chunk; 1 follows the first chunk.
        chunk_frames: frames denoised together.
        cond: the last decoded frames, ``b n 3 h w`` in [-1, 1].
        anchor, null_anchor: APM's tokens ``b k d`` of the anchor frame and of the null image, grey by default.
    """

    seed: int
    chunk_index: int
    chunk_frames: int
    cond: Tensor
    anchor: Tensor | None = None
    null_anchor: Tensor | None = None

    def save(self, path: str | Path) -> None:
        """Writes the state to a safetensors file."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: v.contiguous() for name, v in values.items() if isinstance(v, Tensor)}
        save_file(tensors, path, {name: str(v) for name, v in values.items() if isinstance(v, int)})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> StreamState:
        """Reads what ``save`` wrote."""
        with safe_open(path, "pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return cls(**{name: int(v) for name, v in file.metadata().items()}, **tensors)


@torch.no_grad()
def start_stream(
    models: Models, first_chunk: Tensor, seed: int = 0, anchor: Tensor | None = None, num_cond_frames: int = 8
) -> StreamState:
    """The state after stage 1.

    Args:
        models: the networks; APM's tokens are computed here, once for the whole video.
        first_chunk: ``b f 3 h w`` in [-1, 1]; its length is the length of every chunk.
        seed: of the stream's noise.
        anchor: frames ``b n 3 h w`` that APM keeps to (embeddings of several are averaged); ``None`` for the first.
        num_cond_frames: frames carried over; CAM's own number when there is a CAM.

    Raises:
        ValueError: for a wrong layout or range, or a chunk with nothing new after the carried frames.
    """
    n = num_cond_frames if models.cam is None else models.cam.config.num_cond_frames
    length = check_video(first_chunk, "first_chunk").shape[1]
    if length <= n:
        raise ValueError(f"first_chunk: expected more than {n} frames, got {length}")
    device, tokens, null_tokens = models.device or models.unet.device, None, None
    first_chunk = first_chunk.to(device)
    if models.apm is not None:
        if models.encode_image is None:
            raise ValueError("models with apm need encode_image")
        frames = first_chunk[:, :1] if anchor is None else check_video(anchor, "anchor").to(device)
        null = torch.full_like(frames, models.null_pixel)
        tokens, null_tokens = (models.apm(models.encode_image(f).to(device, models.apm.dtype)) for f in (frames, null))
    return StreamState(seed, 1, length, _own(first_chunk[:, -n:]), tokens, null_tokens)


@torch.no_grad()
def chunk_steps(
    models: Models,
    state: StreamState,
    text: Tensor,
    null_text: Tensor,
    sampling: SamplingConfig,
    noise: Tensor | None = None,
    decode_batch: int | None = None,
    variance_noise: Tensor | None = None,
) -> Generator[StepState, None, tuple[Tensor, StreamState]]:
    """Generates one chunk, a step at a time; a function of its arguments alone.

    Args:
        models: the networks.
        state: what the chunk before left.
        text, null_text: prompt and negative prompt tokens ``b l d``, free to change from chunk to chunk.
        sampling: steps and guidance.
        noise: initial noise ``b z f h w`` in place of that of ``(seed, chunk_index)``.
        decode_batch: frames in the VAE at once; ``None`` for all.
        variance_noise: noise of the steps, ``steps (b f) c h w``, in place of that of ``(seed, chunk_index)``.

    Yields:
        What each denoising step did.

    Returns:
        The new frames ``b m 3 h w`` in [-1, 1] (the carried ones, generated again, are dropped), and the next state.
    """
    models.attach()
    b, n, _, height, width = state.cond.shape
    down, channels = vae_downscale(models.vae), models.unet.config.out_channels
    device, generator = models.device or models.unet.device, chunk_generator(state.seed, state.chunk_index)
    if noise is None:
        noise = randn((b, channels, state.chunk_frames, height // down, width // down), generator, device)
    cond = state.cond.to(device)
    predict = make_predictor(models.unet, models.cam, None if models.cam is None else cond)
    anchors = (None, None) if models.apm is None else (state.anchor.to(device), state.null_anchor.to(device))
    contexts = Contexts(
        text.to(device), null_text.to(device), *anchors, sampling.guidance_scale, sampling.anchor_guidance_scale
    )
    given = None
    if models.replacement:
        known = encode_frames(models.vae, cond, decode_batch).float()
        given = replacing(known, noise.to(device), models.scheduler.alphas_cumprod)
    for step in denoise_steps(
        predict,
        models.scheduler,
        noise.to(device),
        contexts,
        sampling.num_inference_steps,
        sampling.eta,
        generator,
        variance_noise,
        given,
    ):
        yield step
    kept = step.latents[:, :, min(n, state.chunk_frames - n) :]  # of the carried frames only what is carried on again
    video = decode_latents(models.vae, kept, decode_batch).float()
    after = dataclasses.replace(state, chunk_index=state.chunk_index + 1, cond=_own(video[:, -n:]))
    return video[:, n - state.chunk_frames :], after if models.follow is None else models.follow(models, after)


def next_chunk(
    *arguments: Any, callback: Callable[[StepState], None] | None = None, **options: Any
) -> tuple[Float[Tensor, "b m 3 h w"], StreamState]:
    """``chunk_steps`` to its end; calls ``callback`` after each step and returns new frames and next state."""
    return finish(chunk_steps(*arguments, **options), callback)


def finish(steps: Generator[StepState, None, Value], callback: Callable[[StepState], None] | None = None) -> Value:
    """Runs a generator of steps to its end, calling ``callback`` after each one; what it returned."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        if callback is not None:
            callback(step)


def stream_chunks(
    models: Models,
    state: StreamState,
    text: Tensor | Callable[[int], Tensor],
    null_text: Tensor,
    sampling: SamplingConfig,
    num_chunks: int | None = None,
    decode_batch: int | None = None,
    callback: Callable[[StepState], None] | None = None,
) -> Iterator[tuple[Tensor, StreamState]]:
    """Yields blocks of new frames and the state after each, for ever or ``num_chunks`` times.

    Args:
        models, state, null_text, sampling, decode_batch, callback: see ``next_chunk``.
        text: tokens of one prompt, or a prompt schedule: tokens as a function of the chunk's index.
        num_chunks: blocks to yield; ``None`` never ends.
    """
    first = state.chunk_index
    while num_chunks is None or state.chunk_index < first + num_chunks:
        now = text(state.chunk_index) if callable(text) else text
        block, state = next_chunk(models, state, now, null_text, sampling, decode_batch=decode_batch, callback=callback)
        yield block, state


def _own(frames: Tensor) -> Tensor:
    # a copy that keeps no chunk alive, laid out as after save and load: the layout changes convolutions' round-off
    return frames.clone(memory_format=torch.contiguous_format)
