"""Stage 1 by any text-to-video pipeline of diffusers (AnimateDiff was one of the released system's choices)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from st2v_lib.bases import Base, fit
from st2v_lib.config import StreamingT2VConfig


def from_diffusers(pipe: Callable[..., Any], cfg: StreamingT2VConfig, **options: Any) -> Base:
    """A base from a pipeline that takes ``prompt``, ``generator``, ``num_frames`` and ``output_type``.

    Args:
        pipe: the pipeline, on its device.
        cfg: the size that its frames are brought to.
        **options: passed on in each call, ``num_inference_steps=25`` for instance.
    """

    def base(prompt: str, seed: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(seed)
        options_now = {"num_frames": cfg.chunk_frames} | options
        frames = pipe(prompt=prompt, generator=generator, output_type="pt", **options_now).frames
        frames = frames if isinstance(frames, Tensor) else torch.stack(list(frames))
        return fit(frames.float().cpu().reshape(1, -1, *frames.shape[-3:]) * 2 - 1, cfg)

    return base
