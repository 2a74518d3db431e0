"""A drawing of ``st2v reproduce`` in a notebook: its Markdown as HTML that GitHub shows too, pictures kept small.

::

    drawn("table-cam", results, "test")  # the last line of a cell: the same text and figures as on the command line

Only what these drawings consist of is understood: headings, tables, lists, paragraphs, ``code``, **bold**, pictures.
"""

from __future__ import annotations

import base64
import html
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from st2v_lib.notebook.show import in_colours

PICTURE_BYTES, SHOWN_WIDTH = 25_000, 900


class Drawn:
    """Markdown that a notebook shows as HTML; ``text`` is the Markdown, of which plain text keeps the first line."""

    def __init__(self, text: str, page: str):
        self.text, self.page = text, page

    def _repr_html_(self) -> str:
        return self.page

    def __repr__(self) -> str:
        lines = self.text.strip().splitlines()
        return f"{lines[0] if lines else ''} ({len(lines)} lines, shown as HTML)"


def drawn(what: str, results: Path, split: str = "test", limit: int = PICTURE_BYTES) -> Drawn:
    """What ``st2v reproduce WHAT`` draws from the result files of that folder.

    Args:
        what: a name of ``st2v_lib.evaluation.reproduce.DRAW``.
        results, split: whose files.
        limit: bytes each picture may have.

    Raises:
        KeyError: there is no such drawing; the message lists those there are.
    """
    from st2v_lib.evaluation.reproduce import DRAW

    if what not in DRAW:
        raise KeyError(f"{what!r} is no drawing; there are: {', '.join(DRAW)}")
    with tempfile.TemporaryDirectory() as folder:
        text = DRAW[what](Path(results), split, Path(folder))
        return shown(text, lambda name: small_png((Path(folder) / name).read_bytes(), limit))


def shown(text: str, picture: Callable[[str], bytes] | None = None) -> Drawn:
    """Markdown as an output; ``picture`` gives the bytes of a PNG by its name."""
    blocks = [block for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]
    return Drawn(text, "\n".join(_block(block, picture) for block in _apart(blocks)))


def _apart(blocks: list[str]) -> list[str]:
    """Headings and lists that follow a paragraph without an empty line, as blocks of their own."""
    out: list[str] = []
    for block in blocks:
        kinds = [_kind(line) for line in block.splitlines()]
        lines, start = block.splitlines(), 0
        for i in range(1, len(lines) + 1):
            if i == len(lines) or kinds[i] != kinds[start] or kinds[i] == "heading":
                out.append("\n".join(lines[start:i]))
                start = i
    return out


def _kind(line: str) -> str:
    marks = {"#": "heading", "|": "table", "!": "picture"}
    return "list" if line.startswith(("* ", "- ")) else marks.get(line[:1], "text")


def _block(block: str, picture: Callable[[str], bytes] | None) -> str:
    lines = block.splitlines()
    kind = _kind(lines[0])
    if kind == "heading":
        level = min(6, len(lines[0]) - len(lines[0].lstrip("#")) + 2)  # below the notebook's own headings
        return f"<h{level}>{_inline(lines[0].lstrip('# '))}</h{level}>"
    if kind == "table":
        return _table(lines)
    if kind == "list":
        return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
    found = re.fullmatch(r"!\[(.*)\]\((.*)\)", block)
    if found and picture:
        png = picture(found[2])
        width = max(SHOWN_WIDTH // 2, min(SHOWN_WIDTH, int.from_bytes(png[16:20], "big")))  # of the PNG's header
        data = base64.b64encode(png).decode()
        return f'<img src="data:image/png;base64,{data}" width="{width}" alt="{html.escape(found[1])}"/>'
    return f"<p>{_inline(' '.join(lines))}</p>"


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if not _is_rule(line)]
    page = []
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        page.append("<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in row) + "</tr>")
    return f"<table>{''.join(page)}</table>"


def _is_rule(line: str) -> bool:
    return not line.strip("|-: ")


def _inline(text: str) -> str:
    text = html.escape(text.replace("\\*", "∗"), quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)


def small_png(data: bytes, limit: int = PICTURE_BYTES) -> bytes:
    """A PNG in few colours, and smaller on each side until it has at most ``limit`` bytes."""
    from PIL import Image

    picture, out = Image.open(io.BytesIO(data)).convert("RGB"), io.BytesIO()
    for scale in (1, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2):
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        for colours in (255, 128, 64, 32, 16):
            out = io.BytesIO()
            small = picture if scale == 1 else picture.resize(size, Image.Resampling.BOX)
            in_colours(np.asarray(small)[None], colours)[0].save(out, "PNG", optimize=True)
            if out.tell() <= limit:
                return out.getvalue()
    return out.getvalue()
