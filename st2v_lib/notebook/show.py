"""Videos in a notebook that are also seen on GitHub: animated GIFs, contact sheets, x-t slices.

A video is ``f c h w`` or ``b f c h w`` float in [-1, 1], or ``f h w c`` or ``b f h w c`` uint8. Every function takes
one video, a batch, a list, or a dict whose keys become titles. The work is done on plain arrays by ``side_by_side``,
``sheet`` and ``encode_gif``; the ``show`` functions wrap them for the notebook.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from st2v_lib.errors import InputError
from st2v_lib.metrics.xt_slice import xt_slice
from st2v_lib.video_io import as_frames

GIF_BYTES = 200_000
GAP = 4  # pixels between two videos
PAPER, INK = (255, 255, 255), (60, 60, 60)


class Gif:
    """An animated GIF that a notebook shows; ``data`` are its bytes, ``frames`` what was encoded, ``f h w 3``.

    ``scale`` stretches it on the page, where fewer pixels than wanted fit into the bytes.
    """

    def __init__(self, data: bytes, frames: np.ndarray, scale: float = 1):
        self.data, self.frames, self.scale = data, frames, scale

    def _repr_html_(self) -> str:
        h, w = (round(side * self.scale) for side in self.frames.shape[1:3])
        source = base64.b64encode(self.data).decode()
        return f'<img src="data:image/gif;base64,{source}" width="{w}" height="{h}" alt="{html.escape(repr(self))}"/>'

    def __repr__(self) -> str:
        f, h, w, _ = self.frames.shape
        return f"video: {f} frames, {w}x{h} pixels, {len(self.data) / 1000:.0f} kB"


def videos_of(video) -> dict[str, np.ndarray]:
    """One video, a batch, a list or a dict of them as ``{title: uint8 f h w c}``; titles are "" where none is given.

    Raises:
        InputError: wrong layout or range, or no video.
    """
    if isinstance(video, Mapping):
        return {str(title): as_frames(_single(v)) for title, v in video.items()}
    if not isinstance(video, (np.ndarray, torch.Tensor)):
        video = list(video)
    elif video.ndim == 4:
        video = [video]
    if len(video) == 0:
        raise InputError("expected at least one video, got none")
    return {" " * i: as_frames(_single(v)) for i, v in enumerate(video)}


def _single(video):
    return video[0] if video.ndim == 5 and len(video) == 1 else video


def enlarge(frames: np.ndarray, zoom: int) -> np.ndarray:
    """Repeats each pixel ``zoom`` times across and down; ``f h w c``."""
    return frames.repeat(zoom, axis=1).repeat(zoom, axis=2)


def side_by_side(video, zoom: int = 2) -> np.ndarray:
    """Videos in one row, titles above them; shorter ones hold their last frame.

    Args:
        video: see the top of this file.
        zoom: pixels on the screen for a pixel of the video.

    Returns:
        ``uint8 f h w 3``.
    """
    videos = videos_of(video)
    length = max(len(v) for v in videos.values())
    height = max(v.shape[1] for v in videos.values()) * zoom
    titled = any(title.strip() for title in videos)
    columns = []
    for title, frames in videos.items():
        picture = enlarge(np.concatenate([frames, frames[-1:].repeat(length - len(frames), axis=0)]), zoom)
        below = height - picture.shape[1]
        picture = np.pad(picture, ((0, 0), (0, below), (0, 0), (0, 0)), constant_values=PAPER[0])
        if titled:
            line = _text(title.strip(), picture.shape[2])
            picture = np.concatenate([line[None].repeat(length, axis=0), picture], axis=1)
        columns.append(picture)
    gap = np.full((length, columns[0].shape[1], GAP, 3), PAPER[0], np.uint8)
    row = [part for column in columns for part in (column, gap)][:-1]
    return np.concatenate(row, axis=2)


def _text(text: str, width: int, size: int = 12) -> np.ndarray:
    """A line of text on paper, ``uint8 18 width 3``, cut where it does not fit."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    image = Image.new("RGB", (width, size + 6), PAPER)
    ImageDraw.Draw(image).text((width // 2, size // 2 + 2), text, fill=INK, font=font, anchor="mm")
    return np.asarray(image)


def encode_gif(frames: np.ndarray, fps: float = 8, limit: int = GIF_BYTES) -> bytes:
    """Encodes frames as a GIF that loops, with one palette for all of them and no dithering.

    Fewer colours are used when the file would be larger than ``limit`` bytes (255, then 128, 64, 32).

    Args:
        frames: ``uint8 f h w 3``.
        fps: frames per second; GIF counts in hundredths of a second.

    Raises:
        InputError: it is too large even with 32 colours.
    """
    for colours in (255, 128, 64, 32):
        images = in_colours(frames, colours)
        out = io.BytesIO()
        images[0].save(
            out, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, optimize=False
        )
        if out.tell() <= limit:
            return out.getvalue()
    raise InputError(f"the GIF has {out.tell()} bytes, more than {limit}: show fewer frames, or a smaller zoom")


def in_colours(frames: np.ndarray, colours: int) -> list:
    """Frames ``uint8 f h w 3`` as PIL images with one palette, chosen by variety more than by area.

    By area, the grain of a wide background would get most of the palette and a small sprite nothing of it. So of *n*
    pixels that share a cell of 32 levels a channel, about the root of *n* have a say.
    """
    from PIL import Image

    pixels = frames[:: max(1, len(frames) // 16)].reshape(-1, 3)  # sixteen frames are enough to choose colours from
    cells = (pixels >> 5).astype(np.uint16) @ np.array([64, 8, 1], np.uint16)
    share = np.bincount(cells)[cells] ** -0.5
    chosen = Image.fromarray(pixels[np.random.default_rng(0).random(len(pixels)) < share][None])
    palette = chosen.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=2)
    return [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]


def show_video(video, fps: float = 8, zoom: int | None = None, limit: int = GIF_BYTES) -> Gif:
    """Videos side by side as one animated GIF, in step.

    Args:
        video: see the top of this file; the keys of a dict are titles.
        fps: frames per second.
        zoom: pixels on the screen for a pixel of the video (none is blurred); by default about 200 pixels a video, and
            at most 800 for all.
        limit: bytes the GIF may have; with the default zoom, a smaller one is tried before giving up.

    Raises:
        InputError: wrong layout or range, or a GIF that stays too large.
    """
    videos = videos_of(video)
    width = max(v.shape[2] for v in videos.values())
    zooms = [zoom] if zoom else list(range(max(1, min(200 // width, 800 // (width * len(videos)))), 0, -1))
    for tried in zooms:
        frames = side_by_side(videos, tried)
        try:
            return Gif(encode_gif(frames, fps, limit), frames, zooms[0] / tried)
        except InputError:
            if tried == zooms[-1]:
                raise
    raise AssertionError("unreachable")


def sheet(video, every: int = 8, columns: int = 10, zoom: int = 1) -> np.ndarray:
    """Every so many frames of a video, in rows; several videos below each other. ``uint8 h w 3``."""
    blocks = []
    for frames in videos_of(video).values():
        kept = enlarge(frames[::every], zoom)
        kept = np.pad(kept, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=PAPER[0])
        filler = np.full_like(kept[:1], PAPER[0]).repeat(-len(kept) % columns, axis=0)
        kept = np.concatenate([kept, filler])
        rows = [np.concatenate(list(kept[i : i + columns]), axis=1) for i in range(0, len(kept), columns)]
        blocks.append(np.concatenate(rows))
    width = max(block.shape[1] for block in blocks)
    fit = [np.pad(b, ((0, GAP), (0, width - b.shape[1]), (0, 0)), constant_values=PAPER[0]) for b in blocks]
    return np.concatenate(fit)


def contact_sheet(
    video,
    every: int = 8,
    columns: int = 10,
    zoom: int | None = None,
    start: int = 0,
    step: int = 1,
    labels: Sequence[object] | None = None,
    title: str = "",
):
    """A still picture of a video: every ``every``-th frame with its number; several videos below each other.

    Args:
        video: see the top of this file.
        every: frames from one picture to the next.
        columns: pictures in a row.
        zoom: whole number of screen pixels for a pixel; by default about 1000 pixels for a row.
        start, step: of what is given, if it was cut out of something longer: ``video[12:40:4]`` has 12 and 4.
        labels: what stands over the pictures in place of the numbers of frames, one for each picture.
        title: a line above all.

    Returns:
        An ``IPython.display.Image`` (png).

    Raises:
        InputError: fewer labels than pictures.
    """
    import matplotlib.pyplot as plt

    videos = videos_of(video)
    most = max(-(-len(v) // every) for v in videos.values())
    if labels is None:
        labels = [start + step * every * k for k in range(most)]
    elif len(labels) < most:
        raise InputError(f"expected {most} labels, one for each picture, got {len(labels)}")
    columns = min(columns, most)
    width = max(v.shape[2] for v in videos.values())
    zoom = zoom or max(1, 1000 // (columns * width))
    side = min(1.3, 10 / columns)
    rows = [(t.strip(), first, v) for t, v in videos.items() for first in range(0, len(v), every * columns)]
    # a name wider than its picture stands on a line of its own, or it would run into the next number
    wide = any(0.07 * len(f"{name}  {labels[0]}") > side for name, _, _ in rows)
    gap, between = (0.36, "\n") if wide else (0.22, "  ")
    fig, axes = plt.subplots(len(rows), columns, squeeze=False, figsize=(side * columns, (side + gap) * len(rows)))
    for axis in axes.flat:
        axis.axis("off")
    for (name, first, frames), line in zip(rows, axes):
        for axis, t in zip(line, range(first, len(frames), every)):
            axis.imshow(frames[t], interpolation="nearest")
            label = f"{name}{between}{labels[t // every]}" if t == 0 else str(labels[t // every])
            axis.set_title(label.strip(), fontsize=8, pad=2, loc="left")
    fig.subplots_adjust(0, 0, 1, 0.97, wspace=0.04, hspace=gap / side)
    if title:
        fig.suptitle(title, fontsize=9, x=0, y=0.97 + 0.3 / fig.get_figheight(), ha="left", va="bottom")
    return show_figure(fig)


def show_xt(video, position: float = 0.5, axis: str = "x", seams: Iterable[int] = (), width: float = 2.6):
    """x-t slices side by side: one line of pixels of every frame, time downwards, seams as ticks at the right edge.

    Args:
        video: see the top of this file.
        position: where the line lies, from 0 (top or left) to 1.
        axis: ``"x"`` for a row, ``"y"`` for a column of pixels.
        seams: frames at which a chunk begins.
        width: inches of each slice.

    Returns:
        An ``IPython.display.Image`` (png).
    """
    import matplotlib.pyplot as plt

    slices = {title: xt_slice(frames, position, axis) for title, frames in videos_of(video).items()}
    height = 0.5 + width * min(2.0, max(len(s) / s.shape[1] for s in slices.values()))
    fig, axes = plt.subplots(1, len(slices), squeeze=False, figsize=(width * len(slices) + 0.5, height))
    for place, (title, picture) in zip(axes[0], slices.items()):
        place.imshow(picture, aspect="auto", interpolation="nearest", extent=(0, picture.shape[1], len(picture), 0))
        place.set_title(title.strip(), fontsize=10)
        place.set_xlabel(axis, fontsize=9)
        place.tick_params(labelsize=8)
        for seam in seams:
            place.plot([1, 1.06], [seam, seam], color="tab:red", lw=1.5, clip_on=False, transform=_edge(place))
    axes[0][0].set_ylabel("frame", fontsize=9)
    fig.tight_layout()
    return show_figure(fig)


def _edge(axis):
    """Coordinates whose x is a share of the axis and whose y are its data."""
    return axis.get_yaxis_transform()


def show_figure(fig, dpi: int = 90):
    """A matplotlib figure as a png that a notebook shows once; the figure is closed.

    The png has a palette of 255 colours, a third of the bytes of one without.

    Returns:
        An ``IPython.display.Image``.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image as Shown
    from PIL import Image

    drawn, out = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    plt.close(fig)
    (picture,) = in_colours(np.asarray(Image.open(drawn).convert("RGB"))[None], 255)
    picture.save(out, "PNG", optimize=True)
    return Shown(data=out.getvalue(), format="png")
