"""The three stages on one time axis, drawn from a config so that the picture cannot disagree with the code."""

from __future__ import annotations

from st2v_lib.blending import chunk_starts
from st2v_lib.config import StreamingT2VConfig
from st2v_lib.notebook.show import show_figure

BLUE, GREEN, ORANGE, GREY, RED = "#4477aa", "#228833", "#ee8866", "#cccccc", "#cc3311"


def stages(cfg: StreamingT2VConfig, num_frames: int = 40):
    """The three stages on one time axis: a square is a frame, a row of squares a chunk (paper Fig. 2).

    Args:
        cfg: chunk lengths and overlaps.
        num_frames: of the video; one that is reached exactly reads best.

    Returns:
        An ``IPython.display.Image``.
    """
    import matplotlib.pyplot as plt

    keep = cfg.cam.num_cond_frames if cfg.cam else cfg.chunk_frames // 2
    firsts = list(range(0, num_frames - cfg.chunk_frames + 1, cfg.chunk_frames - keep))
    fig, axis = plt.subplots(figsize=(10, 0.62 * (len(firsts) + 5)))

    def frames(first: int, count: int, y: float, colour: str, dashed: bool = False) -> None:
        for f in range(first, first + count):
            style = dict(fc="white", ec=colour, ls=":") if dashed else dict(fc=colour, ec="white")
            axis.add_patch(plt.Rectangle((f + 0.06, y), 0.88, 0.6, lw=1, **style))

    def arrow(start: tuple, end: tuple, colour: str, bend: float) -> None:
        look = dict(arrowstyle="-|>", color=colour, lw=1.4, connectionstyle=f"arc3,rad={bend}", shrinkA=1, shrinkB=1)
        axis.annotate("", end, start, arrowprops=look)

    text = dict(fontsize=9, va="center")
    for k, first in enumerate(firsts):
        y = -k
        frames(first, cfg.chunk_frames if k == 0 else keep, y, BLUE, dashed=k > 0)
        if k:
            frames(first + keep, cfg.chunk_frames - keep, y, GREEN)
            arrow((first + keep / 2, y + 1.0), (first + keep / 2, y + 0.6), RED, 0)
            arrow((0.5, 0), (first, y + 0.3), ORANGE, 0.25)
    axis.text(-0.6, 0.3, "stage 1\nbase model", ha="right", **text)
    axis.text(-0.6, -len(firsts) / 2 + 0.3, "stage 2\nstreaming", ha="right", **text)
    axis.text(
        firsts[-1] + cfg.chunk_frames + 0.4, -len(firsts) + 1.3, "new frames\njoin the video", color=GREEN, **text
    )
    axis.text(
        cfg.chunk_frames + 0.4, 0.3, f"red: CAM sees the last {keep} frames of the chunk before", color=RED, **text
    )
    axis.text(cfg.chunk_frames + 0.4, 0.85, "orange: APM sees frame 0, always", color=ORANGE, **text)
    y = -len(firsts) - 0.2
    frames(0, cfg.chunk_frames, y, BLUE)
    frames(cfg.chunk_frames, num_frames - cfg.chunk_frames, y, GREEN)
    axis.text(-0.6, y + 0.3, f"video, {cfg.size} px", ha="right", **text)
    if cfg.enhancer:
        e = cfg.enhancer
        starts = chunk_starts(num_frames, e.chunk_frames, e.overlap_frames)
        for k, start in enumerate(starts):
            low = y - 0.75 - 0.5 * (k % 2)
            axis.add_patch(plt.Rectangle((start, low), min(e.chunk_frames, num_frames), 0.4, fc=GREY, ec="grey"))
            if k:
                width = starts[k - 1] + e.chunk_frames - start
                axis.add_patch(plt.Rectangle((start, y - 1.25), width, 0.9, fc="none", ec=RED, ls="--"))
                axis.text(start + width / 2, y - 1.55, "cut at random", ha="center", color=RED, fontsize=8)
        axis.text(-0.6, y - 0.8, f"stage 3\nenhance to {e.size} px", ha="right", **text)
        y -= 1.6
    axis.set(xlim=(-5.5, num_frames + 5), ylim=(y - 0.4, 1.2))
    axis.axis("off")
    return show_figure(fig, dpi=80)
