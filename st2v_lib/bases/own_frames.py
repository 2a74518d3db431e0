"""The user's own first chunk: the start of a video, or one image that stands still for a chunk.

Differs from the released code, which turns an image into a video with Stable Video Diffusion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from st2v_lib.bases import Base, fit
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.errors import InputError
from st2v_lib.video_io import IMAGE_SUFFIXES, from_uint8, iter_video, read_image


def from_file(path: str | Path, cfg: StreamingT2VConfig) -> Base:
    """A base that gives the first frames of a video file (or folder of images), or an image; read at once.

    Raises:
        UserError: for a file that is not there, cannot be read, or is too short.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        frames = repeat(read_image(path), "h w c -> f h w c", f=cfg.chunk_frames)
    else:
        frames = []
        for frame in iter_video(path):
            frames.append(frame)
            if len(frames) == cfg.chunk_frames:
                break
        if len(frames) < cfg.chunk_frames:
            raise InputError(f"{path} has {len(frames)} frames; the first chunk needs {cfg.chunk_frames}")
        frames = np.stack(frames)
    video = fit(rearrange(from_uint8(frames), "f c h w -> 1 f c h w"), cfg)

    def base(prompt: str, seed: int) -> Tensor:
        return video.to(torch.float32)

    return base
