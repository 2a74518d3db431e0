"""LPIPS to the first frame: a learnt distance between pictures (paper, ablation of APM). An optional extra.

The paper reports LPIPS as "image distance" and does not say between which frames; here it is each frame against the
first one, which is APM's anchor. It needs the packages ``lpips`` and ``torchvision`` (``pip install
'streamingt2v-kit[metrics]'``) and, on first use, a download of the network's weights. It is not shipped, and no test or
table here relies on it.

What it cannot see: LPIPS compares pictures place by place, so a thing that has moved is as far off as another thing. A
frozen video scores 0, the best there is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from st2v_lib.errors import UserError
from st2v_lib.metrics.base import MetricResult, mean
from st2v_lib.video_io import as_frames, from_uint8


def load_lpips(net: str = "alex") -> torch.nn.Module:
    """The network of the package ``lpips``.

    Raises:
        UserError: the package or torchvision is missing.
    """
    try:
        import lpips
    except ImportError as error:
        raise UserError(
            f"LPIPS needs the packages lpips and torchvision ({error}): pip install 'streamingt2v-kit[metrics]'"
        ) from None
    return lpips.LPIPS(net=net, verbose=False).eval()


@torch.no_grad()
def frame_distance(frame: np.ndarray, anchor: np.ndarray, model: Callable) -> float:
    """LPIPS of two frames, ``uint8 h w c``."""
    return float(model(from_uint8(frame[None]), from_uint8(anchor[None])).squeeze())


def lpips_distance(video, model: Callable | None = None) -> MetricResult:
    """Mean over all frames but the first of LPIPS to the first; lower is more alike.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        model: takes two batches ``n 3 h w`` in [-1, 1]; by default ``load_lpips()``.

    Raises:
        ValueError: fewer than two frames, wrong layout or range. UserError: the package is missing.
    """
    frames = as_frames(video)
    if len(frames) < 2:
        raise ValueError(f"LPIPS to the first frame needs at least 2 frames, got {len(frames)}")
    model = load_lpips() if model is None else model
    return lpips_of([frame_distance(frame, frames[0], model) for frame in frames], model)


def lpips_of(distances: list[float], model: Callable) -> MetricResult:
    """The result from the distance of each frame, the first among them."""
    protocol = {"reference": "first frame", "network": getattr(model, "pnet_type", type(model).__name__)}
    protocol["units"] = "LPIPS, lower is more alike"
    if len(distances) < 2:
        protocol["undefined"] = "fewer than 2 frames"
    return MetricResult("lpips", mean(distances[1:]), per_frame=tuple(distances), protocol=protocol)
