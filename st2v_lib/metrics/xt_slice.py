"""x-t slice: one line of pixels of every frame, stacked over time (paper figures 4, 12 and 15).

Steady motion draws slanted lines; a seam between chunks is a horizontal break in all of them at once, a frozen video
draws vertical lines. It is a picture, not a number, and it sees only what crosses the chosen line.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

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
    lines = []
    for frame in frames:
        h, w, _ = frame.shape
        line = frame[round(position * (h - 1))] if axis == "x" else frame[:, round(position * (w - 1))]
        lines.append(line.copy())
    return np.stack(lines)
