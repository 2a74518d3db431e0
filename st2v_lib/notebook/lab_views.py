"""How a result of the ablation lab looks: plain functions from a result to png bytes or HTML, no widgets."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator

import numpy as np

from st2v_lib.metrics.xt_slice import xt_slice
from st2v_lib.notebook.lab_record import LabResult
from st2v_lib.notebook.lab_score import SHOWN
from st2v_lib.notebook.lab_state import SWITCHES, LabState
from st2v_lib.notebook.show import GAP, show_figure, side_by_side
from st2v_lib.notebook.still import stack, text

WIDTH = 256  # pixels of one video on the page
SEAM, NOW = (214, 39, 40), (255, 255, 255)
INFERENCE, TRAINING = "#1f77b4", "#d62728"


def png(picture: np.ndarray) -> bytes:
    """A picture ``uint8 h w 3`` as png, quick rather than small."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def difference(result: LabResult, times: int = 2) -> np.ndarray:
    """The distance of the two arms, ``times`` enlarged, ``uint8 f h w 3``; black where they agree."""
    a, b = (video.astype(np.int16) for video in result.videos.values())
    return np.clip(times * np.abs(a - b), 0, 255).astype(np.uint8)


def players(result: LabResult) -> list[bytes]:
    """For each frame one png with both arms and their difference side by side: in step by construction."""
    zoom = max(1, WIDTH // result.videos["baseline"].shape[2])
    row = side_by_side({**result.videos, "difference × 2": difference(result)}, zoom)
    return [png(frame) for frame in row]


def slices(result: LabResult, position: float = 0.5, frame: int | None = None, times: int = 2) -> bytes:
    """The x–t slices of both arms and of their difference: time runs down, seams are red, ``frame`` is a white line.

    Args:
        result: of a run.
        position: height of the line of pixels, from 0 (top) to 1.
        frame: the one that the players show.
        times: how much the difference is enlarged.
    """
    return png(_slices(result, position, frame, times))


def _slices(result: LabResult, position: float, frame: int | None, times: int = 2) -> np.ndarray:
    zoom = max(1, WIDTH // result.videos["baseline"].shape[2])
    columns = []
    for who, video in {**result.videos, "difference": difference(result, times)}.items():
        picture = xt_slice(video, position).repeat(4, axis=0).repeat(zoom, axis=1)
        for seam in result.seams.get(who, ()):
            picture[4 * seam - 1 : 4 * seam + 1, :14] = SEAM
        if frame is not None:
            picture[4 * frame + 1 : 4 * frame + 3] = NOW
        columns += [picture, np.full((len(picture), GAP, 3), 255, np.uint8)]
    return np.concatenate(columns[:-1], axis=1)


def curves(result: LabResult) -> bytes:
    """A panel for each quantity, a point for each chunk, both arms."""
    import matplotlib.pyplot as plt

    names = list(result.curves["baseline"])
    fig, axes = plt.subplots(1, len(names), figsize=(2.6 * len(names), 2), squeeze=False)
    for axis, name in zip(axes[0], names):
        for who, colour in (("baseline", INFERENCE), ("ablated", "#ff7f0e")):
            starts = (0, *result.seams[who])
            axis.plot(starts, result.curves[who][name], ".-", color=colour, label=who, lw=1.5)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("chunk that begins at frame", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7)
    fig.tight_layout()
    return show_figure(fig).data


def still(result: LabResult, frame: int, position: float = 0.5) -> bytes:
    """The panel as one picture, for pages without a kernel: what changes, players, x–t slices, table.

    Args:
        result: of a run.
        frame: what the players show.
        position: of the slices, see there.
    """
    zoom = max(1, WIDTH // result.videos["baseline"].shape[2])
    pictures = {**result.videos, "difference × 2": difference(result)}
    row = side_by_side({name: video[frame : frame + 1] for name, video in pictures.items()}, zoom)[0]
    cut, width = _slices(result, position, frame), row.shape[1]
    parts = [
        text([f"the ablated arm changes {_plain(changes(result.state))}", f"players, at frame {frame}"], width), row,
        text(["x–t slices: time runs down, seams red, the frame above white"], width), cut[:, :width],
        text(_table_lines(result), width, mono=True),
    ]  # fmt: skip
    return stack(parts)


def _plain(page: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", page))


def _rows(result: LabResult) -> Iterator[tuple[str, float, float, float, int]]:
    """Of each quantity that an arm has: label, both values, difference, whether more is better (1, -1, 0)."""
    for name, change in result.differences().items():
        label, better = SHOWN[name]
        a, b = (result.metrics[who][name] for who in ("baseline", "ablated"))
        if not (math.isnan(a) and math.isnan(b)):
            yield label, a, b, change, better


def _table_lines(result: LabResult) -> list[str]:
    lines = [f"{'':<34}{'baseline':>10}{'ablated':>10}{'difference':>12}"]
    for label, a, b, change, better in _rows(result):
        hint = {1: "higher is better", -1: "lower is better", 0: ""}[better]
        lines.append(f"{label:<34}{_number(a):>10}{_number(b):>10}{_number(change, sign=True):>12}  {hint}")
    return lines


def table(result: LabResult) -> str:
    """Values of both arms and their difference, in green where the ablated arm is better, red where it is worse."""
    rows = []
    for label, a, b, change, better in _rows(result):
        good = 0 if math.isnan(change) or abs(change) < 1e-9 else better * math.copysign(1, change)
        colour = {1: "#2a7a2a", -1: "#b02020", 0: "#555"}[int(good)]
        arrow = {1: "↑ higher is better", -1: "↓ lower is better", 0: ""}[better]
        cells = "".join(f'<td style="text-align:right;padding:0 8px">{_number(v)}</td>' for v in (a, b))
        rows.append(
            f"<tr><td>{html.escape(label)}</td>{cells}<td style='text-align:right;padding:0 8px;color:{colour}'>"
            f"<b>{_number(change, sign=True)}</b></td><td style='color:#888'>{arrow}</td></tr>"
        )
    head = "<tr><th></th><th>baseline</th><th>ablated</th><th>difference</th><th></th></tr>"
    return f"<table style='line-height:1.35'>{head}{''.join(rows)}</table>"


def changes(state: LabState) -> str:
    """What the ablated arm changes, in words; training-time and inference-time switches in two colours."""
    if not state.changes:
        return "nothing: both arms are the same, and so should the videos be"
    out = []
    for name, value in state.changes.items():
        switch, old = SWITCHES[name], getattr(state.baseline, name)
        colour = TRAINING if switch.when == "training" else INFERENCE
        words = f"{switch.label}: {old} → {value}"
        out.append(f'<span style="color:{colour}">{html.escape(words)}</span> ({switch.when})')
    return "; ".join(out)


def _number(value: float, sign: bool = False) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:+.3g}" if sign and abs(value) > 1e-9 else f"{value:.3g}"
