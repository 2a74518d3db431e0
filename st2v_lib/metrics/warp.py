"""Warping by optical flow, and the error it leaves (paper §12, the W of MAWE).

Two ways to bring a frame to its neighbour:

* ``forward_splat``: each source pixel is pushed to the rounded place its flow points to. Pixels nothing lands on stay
  unfilled. There is no interpolation, so a motion of half a pixel costs an error although nothing is wrong.
* ``backward_warp``: each target pixel fetches its colour, bilinearly, from where its flow points.

The warp error is the mean squared difference on grey levels 0..255 over the pixels that are known. It cannot see
content that is wrong but moves consistently, and it forgives everything it masks; a sharp video is punished more than a
blurred one for the same misplacement.
"""

from __future__ import annotations

import torch
from einops import rearrange

from st2v_lib.metrics.base import MetricResult, mean
from st2v_lib.metrics.flow import Pair, flow_protocol, frame_pairs, two_or_more
from st2v_lib.video_io import as_frames


def forward_splat(image: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Push every pixel to ``round(position + flow)``, halves rounded to even.

    Where several pixels meet, the last in raster order wins; pixels that leave the frame are dropped.

    Args:
        image: ``b c h w``.
        flow: ``b 2 h w``, dx and dy in pixels.

    Returns:
        The warped image (0 where nothing landed) and the mask of unfilled pixels, bool ``b h w``.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(image, flow)
    b, c, h, w = image.shape
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    tx = torch.round(xs.to(flow) + flow[:, 0])
    ty = torch.round(ys.to(flow) + flow[:, 1])
    inside = (tx >= 0) & (tx < w) & (ty >= 0) & (ty < h)
    target = torch.where(inside, ty * w + tx, h * w).long().view(b, -1)  # place h * w is a bin for what left the frame
    source = torch.arange(h * w).expand(b, -1).to(target)
    winner = torch.full((b, h * w + 1), -1).to(target).scatter_reduce(1, target, source, "amax")[:, :-1]
    unfilled = winner < 0
    warped = image.reshape(b, c, -1).gather(2, winner.clamp(min=0)[:, None].expand(-1, c, -1))
    warped = warped.masked_fill(unfilled[:, None], 0)
    return warped.view(b, c, h, w), unfilled.view(b, h, w)


def backward_warp(image: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fetch every pixel, bilinearly, from ``position + flow``.

    Args:
        image: ``b c h w``, the frame the flow points to.
        flow: ``b 2 h w``, dx and dy in pixels, on the grid of the result.

    Returns:
        The warped image (border colours outside) and the mask of pixels fetched from inside the frame, bool ``b h w``.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(image, flow)
    b, c, h, w = image.shape
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    x, y = xs.to(flow) + flow[:, 0], ys.to(flow) + flow[:, 1]
    inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    x0, y0 = x.floor(), y.floor()
    ax, ay = rearrange(x - x0, "b h w -> b 1 h w"), rearrange(y - y0, "b h w -> b 1 h w")
    top = _at(image, y0, x0) * (1 - ax) + _at(image, y0, x0 + 1) * ax
    bottom = _at(image, y0 + 1, x0) * (1 - ax) + _at(image, y0 + 1, x0 + 1) * ax
    return top * (1 - ay) + bottom * ay, inside


def _at(image: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """The colours at those whole numbers ``b h w``, of the border's pixels past the end."""
    b, c, h, w = image.shape
    index = (row.clamp(max=h - 1) * w + column.clamp(max=w - 1)).long().view(b, -1)
    return image.reshape(b, c, -1).gather(2, index[:, None].expand(-1, c, -1)).view(b, c, h, w)


def visible_in_both(forward: torch.Tensor, backward: torch.Tensor | None) -> torch.Tensor:
    """Pixels of the first frame that are still seen in the second, bool ``b h w``.

    A pixel is occluded if going forward and back does not lead home: |f + b|^2 > 0.01 (|f|^2 + |b|^2) + 0.5, the usual
    consistency check. Without a backward flow only pixels that leave the frame are left out.
    """
    if backward is None:
        return backward_warp(forward, forward)[1]
    back, inside = backward_warp(backward, forward)
    gap = (forward + back).square().sum(1)
    return inside & (gap <= 0.01 * (forward.square().sum(1) + back.square().sum(1)) + 0.5)


def masked_mse(a: torch.Tensor, b: torch.Tensor, known: torch.Tensor) -> float:
    """Mean of (a - b)^2 over the known pixels (``b h w``) and all channels; NaN if no pixel is known."""
    count = known.sum().item() * a.shape[1]
    error = ((a - b).square() * known[:, None]).sum(dtype=torch.float64).item()
    return error / count if count else float("nan")


def splat_error(pair: Pair) -> float:
    """Warp error of the released script: first frame splatted onto the second; 0 if nothing lands in the frame."""
    first, second, forward = as_tensors(pair.first, pair.second, pair.forward)
    warped, unfilled = forward_splat(first, forward)
    return 0.0 if unfilled.all() else masked_mse(second, warped, ~unfilled)


def visible_error(pair: Pair) -> float:
    """Warp error without occluded pixels: second frame fetched to the first; NaN if all of it is occluded."""
    first, second, forward = as_tensors(pair.first, pair.second, pair.forward)
    backward = None if pair.backward is None else as_tensors(pair.backward)[0]
    warped, _ = backward_warp(second, forward)
    return masked_mse(first, warped, visible_in_both(forward, backward))


def as_tensors(*arrays) -> list[torch.Tensor]:
    """``uint8 h w c`` frames and ``2 h w`` flows to float tensors with a batch of one."""
    return [
        rearrange(torch.as_tensor(x), "h w c -> 1 c h w").float() if x.dtype.kind == "u" else torch.as_tensor(x)[None]
        for x in arrays
    ]


def warp_error(video, flow: str = "dis", flows=None, size: tuple[int, int] | None = None) -> MetricResult:
    """Mean over pairs of ``splat_error``, in squared grey levels (0..255).

    Args:
        video: ``uint8 f h w c`` or float ``f c h w`` in [-1, 1].
        flow: estimator; ``flows``: given flow instead; ``size``: (h, w) to measure at, None for the native size.

    Raises:
        ValueError: fewer than two frames, wrong layout or range.
    """
    frames = two_or_more(as_frames(video), "warp error")
    return warp_error_of(
        [splat_error(pair) for pair in frame_pairs(frames, flow, flows, size)], flow_protocol(flow, flows, size)
    )


def warp_error_of(errors: list[float], protocol: dict) -> MetricResult:
    """The result from the error of each pair."""
    protocol = {**protocol, "warp": "forward splat, nearest, no occlusion test", "range": "0..255"}
    return MetricResult("warp_error", mean(errors), per_pair=tuple(errors), protocol=protocol)


def _check(image: torch.Tensor, flow: torch.Tensor) -> None:
    if image.ndim != 4 or flow.ndim != 4 or flow.shape != (len(image), 2, *image.shape[2:]):
        raise ValueError(
            f"expected an image 'b c h w' and its flow 'b 2 h w', got {tuple(image.shape)} and {tuple(flow.shape)}"
        )
