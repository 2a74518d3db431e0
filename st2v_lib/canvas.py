"""Pixels to a canvas that the enhancer's network takes, and back: any size goes in, and no bars are left (paper §4.3).

The released network's geometry (``enhancer.shape_quirks``) fits latent heights of 2 plus a multiple of 8 only, such as
the 90 rows of 720 pixels, and widths that are multiples of 8. The released code knows 720 x 720 on a black canvas of
1280 x 720 and leaves the bars in.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from st2v_lib.config import EnhancerConfig


def canvas_size(height: int, width: int, config: EnhancerConfig, downscale: int) -> tuple[int, int]:
    """The smallest canvas in pixels, at least ``config.canvas_width`` wide, that holds a picture of that size.

    Args:
        height, width: in pixels, any.
        config: ``unet`` (how often it halves), ``shape_quirks`` and ``canvas_width``.
        downscale: pixels along one side of a latent cell.
    """
    step = downscale * 2 ** (len(config.unet.block_out_channels) - 1) if config.shape_quirks else downscale
    more = 2 * downscale if config.shape_quirks else 0  # rows: 2 is what the asymmetric down-sampler leaves as it is
    tall = more + -(-max(height - more, step if more else 0) // step) * step
    wide = -(-max(width, config.canvas_width or 0) // step) * step
    return tall, wide


def pad_to_canvas(frames: Tensor, config: EnhancerConfig, downscale: int) -> Tensor:
    """Frames ``... 3 h w`` in [-1, 1] in the middle of a black canvas."""
    height, width = frames.shape[-2:]
    tall, wide = canvas_size(height, width, config, downscale)
    top, left = (tall - height) // 2, (wide - width) // 2
    return F.pad(frames, (left, wide - width - left, top, tall - height - top), value=-1.0)


def crop_from_canvas(frames: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The middle of frames ``... h w``: what ``pad_to_canvas`` put there; ``size`` is height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width]
