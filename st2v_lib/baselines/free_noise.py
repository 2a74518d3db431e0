"""FreeNoise: one long window made of the first chunk's noise, with no training and no memory (arXiv 2310.15169).

A row of the paper's Tab. 1. All frames are denoised together by the base. Frames after the first chunk get the chunk's
noise again, shuffled within short fragments, so that far frames agree; temporal attention looks at windows no longer
than the chunk it was trained on, and where windows overlap their outputs are averaged, most weight to the nearest
centre. Memory grows with the length, and nothing says that frame 300 goes on from frame 200.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor

from st2v_lib.backbone import StreamingUNet
from st2v_lib.errors import InputError

STRIDE = 4  # frames between windows, and length of the fragments that are shuffled


def reschedule_noise(
    noise: Tensor, num_frames: int, generator: torch.Generator | None = None, stride: int = STRIDE
) -> Tensor:
    """The noise of one chunk, stretched: fragments of ``stride`` frames come again and again, each shuffled anew.

    Args:
        noise: ``b c f h w`` of a chunk.
        num_frames: length of the result.
        generator: of the shuffling.
        stride: of a fragment; divides ``f``.

    Returns:
        ``b c num_frames h w``; its first ``f`` frames are ``noise``.

    Raises:
        InputError: when the fragments do not divide the chunk.
    """
    chunk = noise.shape[2]
    if not 0 < stride <= chunk or chunk % stride:
        raise InputError(f"fragments of {stride} frames do not divide a chunk of {chunk}")
    order = list(range(chunk))
    while len(order) < num_frames:
        fragment = order[len(order) - chunk : len(order) - chunk + stride]
        order += [fragment[i] for i in torch.randperm(stride, generator=generator).tolist()]
    return noise[:, :, order[:num_frames]]


def window_starts(num_frames: int, window: int, stride: int = STRIDE) -> list[int]:
    """First frames of the windows; the last window ends with the video."""
    last = max(0, num_frames - window)
    return [*range(0, last, stride), last]


class WindowFusion:
    """An attention processor: another one's attention in windows of frames, outputs averaged where they overlap."""

    def __init__(self, inner, window: int, stride: int = STRIDE):
        self.inner, self.window, self.stride = inner, window, stride

    def __call__(self, attn: Attention, hidden_states: Tensor, *arguments, **options) -> Tensor:
        """Of ``n f d``: every place of the picture, its frames in order."""
        frames, window = hidden_states.shape[1], self.window
        if frames <= window:
            return self.inner(attn, hidden_states, *arguments, **options)
        starts = window_starts(frames, window, self.stride)
        parts = torch.cat([hidden_states[:, s : s + window] for s in starts])
        outputs = self.inner(attn, parts, *arguments, **options).chunk(len(starts))
        ramp = torch.arange(1, window + 1, device=parts.device)
        weight = torch.minimum(ramp, ramp.flip(0)).to(parts.dtype)[:, None]
        total, weights = torch.zeros_like(hidden_states), torch.zeros_like(hidden_states[:1, :, :1])
        for start, output in zip(starts, outputs):
            total[:, start : start + window] += weight * output
            weights[:, start : start + window] += weight
        return total / weights


@contextlib.contextmanager
def windowed_attention(unet: StreamingUNet, window: int, stride: int = STRIDE) -> Iterator[StreamingUNet]:
    """Inside, the UNet's temporal attention sees windows; convolutions over time are local as they are."""
    layers = [
        layer
        for module in unet.modules()
        if isinstance(module, TransformerTemporalModel)
        for layer in module.modules()
        if isinstance(layer, Attention)
    ]
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.processor = WindowFusion(layer.processor, window, stride)
        yield unet
    finally:
        for layer, processor in zip(layers, before):
            layer.processor = processor
