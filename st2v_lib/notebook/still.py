"""A widget as a still picture, for pages without a kernel (GitHub): a picture, lines of text, controls drawn in a row.

A panel whose ``_repr_mimebundle_`` returns ``bundle(widget, name, png)`` is a widget where there is a kernel, and the
still elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from st2v_lib.notebook.show import in_colours

WHITE, INK, BUTTON, EDGE = (255, 255, 255), (60, 60, 60), (238, 238, 238), (190, 190, 190)
WIDGET = "application/vnd.jupyter.widget-view+json"


def bundle(widget: Any, name: str, png: bytes | None) -> dict[str, Any]:
    """What a notebook is given to show: the widget, its name, and the still, if there is one."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}  # the same in ipywidgets 7
    return {WIDGET: view, "text/plain": name} | ({} if png is None else {"image/png": png})


def panel(picture: np.ndarray | None, lines: Sequence[str], controls: Sequence[str]) -> bytes:
    """A panel as png bytes.

    Args:
        picture: ``uint8 h w 3``, or ``None`` where nothing is shown yet.
        lines: of text, under the picture.
        controls: labels of a row below; one that begins with ``"> "`` is a text field, the others are buttons.
    """
    below = _row(controls)
    width = max(520, below.shape[1], 0 if picture is None else picture.shape[1])
    return stack([part for part in (picture, text(lines, width), below) if part is not None and len(part)])


def stack(parts: Sequence[np.ndarray]) -> bytes:
    """Pictures ``uint8 h w 3`` below each other, as png bytes with a small palette."""
    width = max(part.shape[1] for part in parts)
    fit = [np.pad(p, ((0, 6), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in parts]
    out = io.BytesIO()
    in_colours(np.concatenate(fit)[None], 128)[0].save(out, "PNG", optimize=True)
    return out.getvalue()


def text(lines: Sequence[str], width: int, mono: bool = False, size: int = 12) -> np.ndarray:
    """Lines of text on white, ``uint8 h width 3``."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, (size + 5) * len(lines)), WHITE)
    for i, line in enumerate(lines):
        ImageDraw.Draw(image).text((2, (size + 5) * i), line, fill=INK, font=_font(mono, size))
    return np.asarray(image)


def _row(labels: Sequence[str], height: int = 26, gap: int = 8) -> np.ndarray:
    from PIL import Image, ImageDraw

    font = _font(False, 12)
    names = [label.removeprefix("> ") for label in labels]
    widths = [round(font.getlength(name)) + 28 for name in names]
    image = Image.new("RGB", (sum(widths) + gap * len(labels) + 1, height + 1), WHITE)
    draw, left = ImageDraw.Draw(image), 0
    for label, name, width in zip(labels, names, widths):
        fill = WHITE if label.startswith("> ") else BUTTON
        draw.rounded_rectangle((left, 0, left + width, height), 2, fill, EDGE)
        draw.text((left + width / 2, height / 2), name, fill=INK, font=font, anchor="mm")
        left += width + gap
    return np.asarray(image)


def _font(mono: bool, size: int):
    from matplotlib import font_manager
    from PIL import ImageFont

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono" if mono else "DejaVu Sans"), size)
