"""x-t slice: one line of pixels of every frame, stacked over time (paper figures 4, 12 and 15), and its seam number.

Steady motion draws slanted lines; a seam between chunks is a horizontal break in all of them at once, a frozen video
draws vertical lines. ``xt_seam`` turns the breaks into a number: how much more the line changes from frame to frame at
the seams than elsewhere, in grey levels (mean over the line). 0 means that the slice does not show the seams. The paper
shows the pictures only.

What both cannot see: whatever does not cross the chosen line. The number is also blind to breaks away from the seams
(they lower it) and to jumps of a thing whose colours are those of its background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from st2v_lib.metrics.base import MetricResult, mean, undefined
from st2v_lib.video_io import as_frames


def xt_slice(video, position: float = 0.5, axis: str = "x") -> np.ndarray:
    """Stack one row (or column) of each frame.

    Args:
        video: ``uint8 f h w c``, float ``f c h w`` in [-1, 1], or an iterable of ``uint8 h w c`` frames (streamed).
        position: where the line lies, from 0 (top or left) to 1 (bottom or right).
        axis: ``"x"`` for a row, ``"y"`` for a column.

    Returns:
        ``uint8``: ``f w 3`` for ``"x"``, ``f h 3`` for ``"y"``; time runs downwards.

    Raises:
        ValueError: a position outside 0..1, an unknown axis, wrong layout or range.
    """
    if not 0 <= position <= 1:
        raise ValueError(f"expected a position in 0..1, got {position}")
    if axis not in ("x", "y"):
        raise ValueError(f"expected axis 'x' or 'y', got {axis!r}")
    frames: Iterable[np.ndarray] = as_frames(video) if hasattr(video, "shape") else video
    return np.stack([line_of(frame, position, axis) for frame in frames])


def line_of(frame: np.ndarray, position: float = 0.5, axis: str = "x") -> np.ndarray:
    """A copy of one row (or column) of ``uint8 h w c``."""
    h, w, _ = frame.shape
    return (frame[round(position * (h - 1))] if axis == "x" else frame[:, round(position * (w - 1))]).copy()


def line_change(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two lines ``uint8 w c``, in grey levels."""
    return float(np.abs(before.astype(np.int16) - after).mean())


def xt_seam(video, seams: Sequence[int], position: float = 0.5, axis: str = "x") -> MetricResult:
    """Mean change of the slice at the seams less its mean change elsewhere; lower is better, 0 hides the seams.

    Args:
        video, position, axis: as for ``xt_slice``.
        seams: first frame of each chunk but the first.

    Raises:
        ValueError: a seam that is not between two frames of the video; see also ``xt_slice``.
    """
    lines = xt_slice(video, position, axis)
    return xt_seam_of([line_change(a, b) for a, b in zip(lines, lines[1:])], seams, position, axis)


def xt_seam_of(changes: list[float], seams: Sequence[int], position: float = 0.5, axis: str = "x") -> MetricResult:
    """The result from ``line_change`` of each pair; ``per_pair`` holds those changes."""
    if any(not 0 < seam <= len(changes) for seam in seams):
        raise ValueError(f"seams lie between 1 and {len(changes)}, got {list(seams)}")
    at = [changes[seam - 1] for seam in seams]
    elsewhere = [change for i, change in enumerate(changes, 1) if i not in set(seams)]
    protocol = {"line": f"{axis} at {position:g}", "seams": list(seams), "units": "grey levels, 0 shows no seam"}
    if not at or not elsewhere:
        return undefined("xt_seam", "no seam" if not at else "nothing but seams", protocol)
    protocol |= {"at_seams": mean(at), "elsewhere": mean(elsewhere)}
    return MetricResult("xt_seam", mean(at) - mean(elsewhere), per_pair=tuple(changes), protocol=protocol)
