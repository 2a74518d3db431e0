"""Diagrams of notebooks 09 and 11: what is trained in half a minute, and two memories through the years."""

from __future__ import annotations

from st2v_lib.notebook.diagrams import BLUE, GREY, INK, ORANGE, _arrow, _box, _canvas

LINEAGE = (  # year of the first paper, name, short-term memory, long-term memory
    ("2024", "StreamingT2V", "CAM: attends to\nfeatures of 8 frames", "APM: one frame as\n8–16 tokens"),
    ("2025", "SkyReels-V2,\ndiffusion forcing", "overlap of 17 frames,\nslightly noised", "–"),
    ("2025", "Self-Forcing,\nCausVid", "keys and values of\nrecent frames", "–"),
    ("2025", "LongLive,\nRolling Forcing", "keys and values of\na short window", "sink: the first\nframes stay"),
    ("2025", "FramePack", "last frames at\nfull detail", "older frames, packed\never more coarsely"),
    ("2026", "Helios", "history in three\ndegrees of detail", "the first frame\nis kept"),
)


def halfway_diagram():
    """What notebook 09 trains: the injectors, between a frozen UNet and a frozen extractor."""
    from st2v_lib.notebook.show import show_figure

    fig, axis = _canvas(10.4, 3.2)
    _box(axis, 1.1, 2.5, 1.9, 0.62, "noisy latents of\na training clip", GREY)
    _box(axis, 1.1, 0.75, 1.9, 0.62, "its first 8 frames,\nclean", GREY)
    _box(axis, 3.55, 2.5, 1.9, 0.72, "UNet encoder\nfrozen", GREY)
    _box(axis, 3.55, 0.75, 1.9, 0.72, "extractor\ntrained before, frozen", GREY)
    _box(axis, 5.85, 1.62, 1.6, 0.85, "injectors\nlearnt here,\nfrom zero", ORANGE)
    _box(axis, 7.75, 2.5, 1.4, 0.72, "UNet decoder\nfrozen", GREY)
    _box(axis, 9.5, 2.5, 1.3, 0.72, "loss:\nv − its target", "white")
    for start, end in (
        ((2.08, 2.5), (2.57, 2.5)), ((2.08, 0.75), (2.57, 0.75)), ((2.08, 2.3), (2.9, 1.14)),
        ((4.53, 2.4), (5.05, 1.95)), ((4.53, 0.85), (5.05, 1.3)), ((6.68, 1.9), (7.05, 2.25)),
        ((8.48, 2.5), (8.82, 2.5)),
    ):  # fmt: skip
        _arrow(axis, start, end)
    axis.text(2.42, 1.62, "the first\n8 frames", fontsize=8, color=INK, ha="right", va="center")
    _arrow(axis, (9.4, 2.1), (6.72, 1.45), "tab:red", bend=-0.25)
    axis.text(8.45, 1.2, "gradient, through the frozen decoder", fontsize=8, color="tab:red", ha="center")
    return show_figure(fig)


def lineage_diagram():
    """Short-term and long-term memory of six systems, oldest first (each from its own paper or README)."""
    from st2v_lib.notebook.show import show_figure

    width = 11.6
    fig, axis = _canvas(width, 3.5)
    step = width / (len(LINEAGE) + 0.62)
    for y, name in ((1.75, "short\nterm"), (0.6, "long\nterm")):
        axis.text(0.3, y, name, ha="center", va="center", fontsize=9, color=INK)
    for i, (year, name, short, long) in enumerate(LINEAGE):
        x = step * (i + 1.12)
        axis.text(x, 3.2, year, ha="center", va="center", fontsize=8, color="#777777")
        axis.text(x, 2.75, name, ha="center", va="center", fontsize=9, color=INK, weight="bold")
        _box(axis, x, 1.75, step - 0.16, 0.8, short, BLUE, 7)
        _box(axis, x, 0.6, step - 0.16, 0.8, long, ORANGE if long != "–" else GREY, 7)
        if i:
            _arrow(axis, (x - step / 2 - 0.09, 1.75), (x - step / 2 + 0.09, 1.75))
    return show_figure(fig)
