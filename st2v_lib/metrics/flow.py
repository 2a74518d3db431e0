"""Optical flow between consecutive frames: where each pixel of frame i lies in frame i + 1.

Units: pixels of the frames it was computed on; channel 0 is dx (to the right), channel 1 dy (downwards).

Estimators: ``"dis"`` and ``"farneback"`` from OpenCV (no weights, deterministic; both work on grey values), ``"raft"``
from torchvision where that is installed (the paper's choice, §12 there), ``"true"`` for flow that is given, as for
renderings. What no estimator sees: motion inside flat regions, across repeating patterns beyond half a period, and
motion much larger than the picture's details; across a cut the flow has no meaning at all, yet it has values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from st2v_lib.errors import UserError
from st2v_lib.video_io import as_frames, from_uint8

ESTIMATORS = ("dis", "farneback", "raft", "true")
DIS_MIN_SIDE = 16  # below, OpenCV refuses or, if the frame is wide, crashes the process (seen in 5.0 at 12x40)
FARNEBACK = {"pyr_scale": 0.5, "levels": 5, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
PairFlow = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Pair(NamedTuple):
    """Two consecutive frames (``uint8 h w c``) and the flow between them (``2 h w``), all of one size.

    ``scale`` is (native width, native height) over the measured ones: it turns this flow into pixels of the video.
    """

    first: np.ndarray
    second: np.ndarray
    forward: np.ndarray
    backward: np.ndarray | None
    scale: tuple[float, float]


def make_estimator(method: str = "dis", raft_model: torch.nn.Module | None = None) -> PairFlow:
    """A function ``(first, second) -> flow`` on ``uint8 h w c`` frames; the flow is float32 ``2 h w``.

    Args:
        method: ``"dis"``, ``"farneback"`` or ``"raft"``.
        raft_model: a network to use instead of torchvision's pre-trained RAFT-large (it returns a list of flows, the
            last one counts).

    Raises:
        ValueError: unknown method.
        UserError: RAFT without torchvision.
    """
    if method == "dis":
        return _dis
    if method == "farneback":
        return _farneback
    if method == "raft":
        return _raft(raft_model)
    raise ValueError(f"expected a flow estimator out of {ESTIMATORS}, got {method!r}")


def _grey(frame: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)


def _dis(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    import cv2

    h, w, _ = first.shape
    if min(h, w) < DIS_MIN_SIDE:
        raise ValueError(f"expected frames of at least {DIS_MIN_SIDE}x{DIS_MIN_SIDE} for DIS flow, got {w}x{h}")
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return rearrange(dis.calc(_grey(first), _grey(second), None), "h w c -> c h w")


def _farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    import cv2

    flow = cv2.calcOpticalFlowFarneback(_grey(first), _grey(second), None, **FARNEBACK)
    return rearrange(flow, "h w c -> c h w")


def _raft(model: torch.nn.Module | None) -> PairFlow:
    if model is None:
        try:
            from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
        except ImportError:
            raise UserError('flow "raft" needs torchvision, which is not installed; use "dis" or install it') from None
        model = raft_large(weights=Raft_Large_Weights.DEFAULT)
    model = model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        h, w, _ = first.shape
        pad = (0, max(-(-w // 8) * 8, 128) - w, 0, max(-(-h // 8) * 8, 128) - h)  # RAFT wants multiples of 8, >= 128
        a, b = (F.pad(from_uint8(frame[None]), pad, mode="replicate").to(device) for frame in (first, second))
        return model(a, b)[-1][0, :, :h, :w].float().cpu().numpy()

    return estimate


def resize_frame(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Bilinear resize of ``uint8 h w c`` to (h, w): half-pixel centres, no antialiasing, rounded; None: unchanged."""
    if size is None or frame.shape[:2] == tuple(size):
        return frame
    x = rearrange(torch.as_tensor(frame), "h w c -> 1 c h w").float()
    x = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=False)
    return rearrange(x.round().to(torch.uint8), "1 c h w -> h w c").numpy()


def frame_pairs(
    frames: Iterable[np.ndarray],
    flow: str | PairFlow = "dis",
    flows: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    backward: bool = False,
    backward_flows: np.ndarray | None = None,
) -> Iterator[Pair]:
    """Walk through a video pair by pair, holding two frames at a time.

    Args:
        frames: ``uint8 h w c`` frames: an array ``f h w c``, or any iterable such as ``video_io.iter_video``.
        flow: estimator by name, or a function from ``make_estimator``.
        flows: given flow ``f-1 2 h w`` at the measured size; used instead of an estimator.
        size: (h, w) to resize the frames to before anything else; None keeps their size.
        backward: also give the flow from the second frame back to the first.
        backward_flows: given backward flow, as ``flows``.

    Raises:
        ValueError: given flows that do not fit the frames; an unknown estimator.
    """
    estimate = None
    if flows is None:
        estimate = make_estimator(flow) if isinstance(flow, str) else flow
    previous, count = None, 0
    for frame in frames:
        native_h, native_w = frame.shape[:2]
        frame = resize_frame(frame, size)
        if previous is not None:
            scale = (native_w / frame.shape[1], native_h / frame.shape[0])
            if estimate is None:
                forward = _given(flows, count, frame.shape[:2], "flows")
                back = (
                    None if backward_flows is None else _given(backward_flows, count, frame.shape[:2], "backward_flows")
                )
            else:
                forward = estimate(previous, frame)
                back = estimate(frame, previous) if backward else None
            yield Pair(previous, frame, forward, back, scale)
            count += 1
        previous = frame
    if flows is not None and len(flows) != count:
        raise ValueError(f"expected {count} given flows for {count + 1} frames, got {len(flows)}")


def _given(flows: np.ndarray, index: int, size: tuple[int, int], name: str) -> np.ndarray:
    flow = np.asarray(flows[index], dtype=np.float32) if index < len(flows) else None
    got = "too few" if flow is None else f"shape {flow.shape}"
    if flow is None or flow.shape != (2, *size):
        raise ValueError(f"expected {name}[{index}] of shape {(2, *size)} (dx, dy at the measured size), got {got}")
    if not np.isfinite(flow).all():
        raise ValueError(f"expected finite {name}, got NaN or infinity in {name}[{index}]")
    return flow


def estimate_flow(video, method: str = "dis", flows: np.ndarray | None = None) -> np.ndarray:
    """Forward flow of a whole video.

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        method: ``"dis"``, ``"farneback"``, ``"raft"`` or ``"true"``.
        flows: the given flow for ``"true"``, checked and returned.

    Returns:
        float32 ``f-1 2 h w``: dx, dy in pixels from frame i to frame i + 1.

    Raises:
        ValueError: fewer than two frames, wrong layout or range, unknown method, ``"true"`` without ``flows``.
    """
    frames = two_or_more(as_frames(video), "optical flow")
    if method == "true" and flows is None:
        raise ValueError('expected `flows` for the method "true", got None')
    pairs = frame_pairs(frames, method, flows if method == "true" else None)
    return np.stack([pair.forward for pair in pairs])


def two_or_more(frames: np.ndarray, what: str) -> np.ndarray:
    """The frames, or a ValueError if there is no pair among them."""
    if len(frames) < 2:
        raise ValueError(f"{what} needs at least 2 frames, got {len(frames)}")
    return frames


def flow_protocol(flow: str | PairFlow, flows, size: tuple[int, int] | None) -> dict[str, Any]:
    """How the flow was made, for ``MetricResult.protocol``."""
    name = "true" if flows is not None else flow if isinstance(flow, str) else getattr(flow, "__name__", "custom")
    protocol: dict[str, Any] = {"flow": name, "measured_at": "native" if size is None else f"{size[1]}x{size[0]}"}
    if name in ("dis", "farneback"):
        import cv2

        settings = "preset medium" if name == "dis" else ", ".join(f"{k} {v}" for k, v in FARNEBACK.items())
        protocol["flow_settings"] = f"OpenCV {cv2.__version__}, {settings}"
    elif name == "raft":
        protocol["flow_settings"] = "torchvision RAFT-large, default weights"
    return protocol
