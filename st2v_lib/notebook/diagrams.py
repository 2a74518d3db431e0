"""Diagrams of the method, drawn by code (after the paper's Fig. 2, 3 and 16, in this project's own layout)."""

from __future__ import annotations

GREY, BLUE, ORANGE, GREEN, INK = "#e4e4e4", "#cfe0f5", "#f9dcc0", "#d3ecd0", "#333333"


def _canvas(width: float, height: float):
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(width, height))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return fig, axis


def _box(axis, x: float, y: float, w: float, h: float, text: str, colour: str = GREY, size: float = 8.5) -> None:
    """A rounded box with its centre at (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - w / 2, y - h / 2)
    axis.add_patch(
        FancyBboxPatch(corner, w, h, boxstyle="round,pad=0.02,rounding_size=0.06", fc=colour, ec=INK, lw=0.9)
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=size, color=INK)


def _arrow(axis, start, end, colour: str = INK, style: str = "-|>", bend: float = 0.0) -> None:
    from matplotlib.patches import FancyArrowPatch

    path = f"arc3,rad={bend}"
    axis.add_patch(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=9, lw=1.1, color=colour, connectionstyle=path)
    )


def cam_diagram():
    """CAM beside the UNet: extractor, injectors on the skips and after the middle block (paper §4.1, Fig. 3)."""
    from st2v_lib.notebook.show import show_figure

    fig, axis = _canvas(10.4, 4.3)
    _box(axis, 1.0, 3.4, 1.7, 0.62, "noisy latents\nof 16 slots", GREY)
    _box(axis, 1.0, 1.9, 1.7, 0.62, "… slots 0–7", BLUE)
    _box(axis, 1.0, 0.7, 1.7, 0.62, "8 clean frames\nof the old chunk", BLUE)
    _box(axis, 3.2, 0.7, 1.5, 0.62, "pixel encoder\nE_cond", BLUE)
    _box(axis, 3.2, 3.4, 1.5, 0.95, "UNet\nencoder", GREY)
    _box(axis, 4.55, 1.9, 2.6, 0.95, "extractor:\na copy of encoder and middle", BLUE)
    _box(axis, 5.4, 3.4, 1.2, 0.95, "UNet\nmiddle", GREY)
    _box(axis, 7.3, 2.65, 1.8, 1.0, "injectors\n16 queries, 8 keys\nat every cell", ORANGE)
    _box(axis, 9.35, 3.4, 1.5, 0.95, "UNet\ndecoder", GREY)
    _box(axis, 9.35, 1.2, 1.7, 0.62, "slots 8–15:\nnew frames", GREEN)
    for start, end in (
        ((1.87, 3.4), (2.43, 3.4)), ((3.97, 3.4), (4.78, 3.4)), ((1.0, 3.07), (1.0, 2.23)), ((1.87, 1.9), (3.23, 1.9)),
        ((1.87, 0.7), (2.43, 0.7)), ((9.35, 2.9), (9.35, 1.53)),
    ):  # fmt: skip
        _arrow(axis, start, end)
    _arrow(axis, (3.97, 0.7), (4.2, 1.4), "#2a5fa8", bend=0.25)
    axis.text(4.42, 1.0, "+", fontsize=13, color="#2a5fa8", ha="center", va="center")
    _arrow(axis, (5.87, 1.9), (6.7, 2.13), "#2a5fa8", bend=0.15)
    axis.text(6.45, 1.72, "keys, values", fontsize=7.5, color="#2a5fa8", ha="center")
    _arrow(axis, (6.02, 3.3), (6.38, 2.95), "#b0560c", bend=-0.2)
    _arrow(axis, (3.2, 3.9), (7.3, 3.18), "#b0560c", bend=-0.32)
    axis.text(5.2, 4.03, "skips: queries", fontsize=7.5, color="#b0560c", ha="center")
    _arrow(axis, (8.22, 2.8), (8.58, 3.2), "#b0560c", bend=-0.2)
    return show_figure(fig)


def apm_diagram():
    """From the anchor frame to the keys and values of one text cross-attention (paper §4.2, Fig. 3)."""
    from st2v_lib.notebook.show import show_figure

    fig, axis = _canvas(10.4, 3.3)
    _box(axis, 0.95, 0.9, 1.6, 0.62, "anchor: frame 0\nof the video", BLUE)
    _box(axis, 2.95, 0.9, 1.5, 0.62, "CLIP image\nembedding", BLUE)
    _box(axis, 4.75, 0.9, 1.2, 0.62, "MLP →\nk tokens", BLUE)
    _box(axis, 0.95, 2.5, 1.6, 0.62, "prompt", GREY)
    _box(axis, 2.95, 2.5, 1.5, 0.62, "CLIP text\ntokens", GREY)
    _box(axis, 6.45, 1.35, 1.5, 0.9, "Conv1d over\nthe tokens,\nLayerNorm", ORANGE)
    _box(axis, 8.1, 1.35, 1.1, 0.62, "× SiLU(α)\nper layer", ORANGE)
    _box(axis, 8.1, 2.5, 0.5, 0.42, "+", ORANGE, 12)
    _box(axis, 9.55, 2.5, 1.4, 0.75, "keys, values\nof the layer's\ntext attention", GREEN)
    for start, end in (
        ((1.77, 0.9), (2.18, 0.9)), ((3.72, 0.9), (4.13, 0.9)), ((5.37, 0.9), (5.68, 1.1)), ((1.77, 2.5), (2.18, 2.5)),
        ((3.72, 2.5), (7.83, 2.5)), ((7.22, 1.35), (7.53, 1.35)), ((8.1, 1.68), (8.1, 2.27)),
        ((8.37, 2.5), (8.83, 2.5)),
    ):  # fmt: skip
        _arrow(axis, start, end)
    _arrow(axis, (4.4, 2.5), (5.68, 1.6), bend=0.15)
    return show_figure(fig)


def blending_diagram(overlap: int = 8, cut: int = 5):
    """Two chunks, their overlap, and where one step's cut falls (paper §4.3, Fig. 4)."""
    from matplotlib.patches import Rectangle

    from st2v_lib.notebook.show import show_figure

    fig, axis = _canvas(9.0, 2.6)
    cell, left = 0.42, 2.2
    length = overlap + 4
    for row, y, start, colour in ((0, 1.95, 0, BLUE), (1, 1.25, 4, ORANGE)):
        for f in range(length):
            kept = f < 4 + cut if row == 0 else f >= cut
            axis.add_patch(
                Rectangle((left + (start + f) * cell, y), cell, 0.45, fc=colour if kept else "white", ec=INK, lw=0.7)
            )
    for f in range(4 + length):
        colour = BLUE if f < 4 + cut else ORANGE
        axis.add_patch(Rectangle((left + f * cell, 0.35), cell, 0.45, fc=colour, ec=INK, lw=0.7))
    for y, text in ((2.17, "left chunk predicts"), (1.47, "right chunk predicts"), (0.57, "the video's next state")):
        axis.text(left - 0.15, y, text, ha="right", va="center", fontsize=8.5, color=INK)
    x = left + (4 + cut) * cell
    axis.plot([x, x], [0.2, 2.55], color="tab:red", lw=1.4, ls="--")
    axis.text(x + 0.08, 0.12, "cut, drawn anew at every step", fontsize=8, color="tab:red", va="center")
    axis.annotate(
        "", (left + 4 * cell, 1.82), (left + (4 + overlap) * cell, 1.82), arrowprops={"arrowstyle": "<->", "lw": 0.8}
    )
    axis.text(left + (4.2 + overlap) * cell, 1.82, "overlap", fontsize=8, va="center", color=INK)
    return show_figure(fig)
