"""Stage 1: where the first chunk comes from (paper §4, initialisation). A base is a function, a new base one file.

A base takes ``(prompt, seed)`` and gives frames ``1 f 3 h w`` in [-1, 1] of the pipeline's chunk length and size:
``pipe(prompt, first_chunk=base)``. ``fit`` brings what other models make to that form. Here are

* ``separate_unet``: the pipeline's own base where it has a UNet of its own for stage 1, as the released model does;
* ``own_frames``: a video or an image of the user's;
* ``diffusers_pipeline``: any text-to-video pipeline of diffusers, AnimateDiff for instance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from st2v_lib.config import StreamingT2VConfig
from st2v_lib.errors import InputError

Base = Callable[[str, int], Tensor]


def fit(video: Tensor, cfg: StreamingT2VConfig) -> Tensor:
    """The first frames of a video ``1 f 3 h w`` in [-1, 1], centre square, at the pipeline's size.

    Raises:
        InputError: if the video is shorter than a chunk.
    """
    n, side = cfg.chunk_frames, min(video.shape[-2:])
    if video.shape[1] < n:
        raise InputError(f"the first chunk needs {n} frames, got {video.shape[1]}")
    top, left = (video.shape[-2] - side) // 2, (video.shape[-1] - side) // 2
    frames = rearrange(video[:, :n, :, top : top + side, left : left + side], "1 f c h w -> f c h w")
    if side != cfg.size:
        frames = F.interpolate(frames, (cfg.size, cfg.size), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(frames.clamp(-1, 1), "f c h w -> 1 f c h w")
