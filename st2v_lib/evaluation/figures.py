"""Figures from result files: stability over length, x-t slices (Fig. 4, 12) and strips of frames (Fig. 14)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from st2v_lib.errors import UserError
from st2v_lib.evaluation.paper import STABILITY
from st2v_lib.evaluation.statistics import interval, over_runs, paired_difference, verdict
from st2v_lib.evaluation.tables import NOT_RUN, Group, groups, markdown, plain, show
from st2v_lib.evaluation.waiting import not_run

CURVES = {
    "mawe_code": "MAWE (code's formula, native size)", "clip_score": "CLIP score (the small CLIP)",
    "pattern_error": "share of frames with another pattern", "shade_error": "shade error (range 0 to 1)",
}  # fmt: skip

Curve = dict[int, dict[str, dict[int, float]]]  # length -> value -> video -> number


def stability(results: Path, split: str, out: Path) -> str:
    """Scores of the first n frames, the paper's beside; a curve for each arm."""
    found = groups(results, "long", split)
    parts = ["## stability\n"]
    if not found:
        theirs = {f"{n} frames": f"MAWE {mawe:g}, CLIP {clip:g}" for n, (mawe, clip) in STABILITY.items()}
        return "\n".join([*parts, not_run("long", split, theirs)])
    for k, group in enumerate(found):
        curves = {arm: curve_of(runs) for arm, runs in group.rows.items()}
        rows = []
        for arm, curve in curves.items():
            for n, values in curve.items():
                paper = STABILITY.get(n, ("", "")) if arm == "full" else ("", "")
                cells = [show(interval(list(values[name].values()))) for name in CURVES]
                rows.append([arm, str(n), *cells, *(f"{v}" for v in paper)])
        head = ["arm", "first n frames", *CURVES.values(), "paper's MAWE", "paper's CLIP"]
        name = f"stability-{k}.png"
        _plot(curves, group.title, out / name)
        parts += [f"### {group.title}\n", markdown(head, rows), f"\n![{group.title}]({name})\n", changes(curves)]
    return "\n".join(parts)


def changes(curves: dict[str, Curve]) -> str:
    """Each arm's scores at 220 frames and at the full length less those at 120, on the same videos."""
    rows = []
    for arm, curve in curves.items():
        first, last = min(curve), max(curve)
        for n in dict.fromkeys((min(220, last), last)):
            if n > first and n in curve:
                cells = []
                for name in CURVES:
                    found = paired_difference(curve[n][name], curve[first][name])
                    said = verdict(found, 1 if name == "clip_score" else -1)
                    cells.append(show(found, signed=True) + (f" ({said})" if found.n > 1 else ""))
                rows.append([arm, f"{n} less {first}", *cells])
    (mawe, clip), (early_mawe, early_clip) = STABILITY[220], STABILITY[120]
    theirs = f"In the paper, 220 less 120: MAWE {mawe - early_mawe:+.2f}, CLIP {clip - early_clip:+.2f}.\n"
    return (markdown(["arm", "frames", *CURVES.values()], rows) + "\n\n" if rows else "") + theirs


def curve_of(runs: Sequence[dict[str, Any]]) -> Curve:
    """Length -> value -> one number a video, the mean over its runs."""
    found: dict[int, dict[str, list[dict[int, float]]]] = {}
    for run in runs:
        for video in run["videos"]:
            details = video.get("details", {})
            for i, n in enumerate(details.get("frames", [])):
                at = found.setdefault(n, {name: [] for name in CURVES})
                for name in CURVES:
                    value = details[name][i]
                    at[name].append({video["index"]: math.nan if value is None else value})
    return {n: {name: over_runs(values) for name, values in at.items()} for n, at in sorted(found.items())}


def _plot(curves: dict[str, Curve], title: str, path: Path) -> None:
    figure, axes = _figure(1, len(CURVES), 3.2, 2.6)
    for axis, (name, label) in zip(axes[0], CURVES.items()):
        for arm, curve in curves.items():
            found = [interval(list(at[name].values())) for at in curve.values()]
            axis.plot(list(curve), [f.mean for f in found], "o-", ms=3, label=arm)
            axis.fill_between(list(curve), [f.low for f in found], [f.high for f in found], alpha=0.2)
        axis.set(title=label, xlabel="first n frames")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def motion(results: Path, split: str, out: Path) -> str:
    """Motion against the bend at seams, an arm a point: a memory may buy smooth joints by moving less."""
    parts = ["## motion\n"]
    found = plain(groups(results, "cam", split))
    if not found:
        return "\n".join([*parts, not_run("cam", split)])
    for k, group in enumerate(found):
        figure, axes = _figure(1, 1, 6.5, 3.6)
        rows = []
        for arm in group.rows:
            bend, moved = (interval(list(group.values(arm, v).values())) for v in ("seam_bend", "motion_over_true"))
            rows.append([arm, show(bend), show(moved)])
            error = [[[abs(f.mean - f.low)], [abs(f.high - f.mean)]] for f in (bend, moved)]
            axes[0][0].errorbar(bend.mean, moved.mean, xerr=error[0], yerr=error[1], fmt="o", ms=4, lw=0.8, label=arm)
        axes[0][0].axhline(1, color="black", lw=0.6)
        axes[0][0].set(xlabel="bend at seams, px", ylabel="motion over the true one", title=group.title)
        axes[0][0].title.set_fontsize(8)
        figure.legend(loc="outside right upper", fontsize=7)  # beside the axes: the error bars fill them
        name = f"motion-{k}.png"
        figure.savefig(out / name, dpi=110)
        head = ["arm", "bend at seams, px ↓", "motion over the true one"]
        parts += [f"![{group.title}]({name})\n", markdown(head, rows) + "\n"]
    return "\n".join(parts)


def fig4(results: Path, split: str, out: Path) -> str:
    """x-t slices of naive concatenation, shared noise and randomized blending, beside the truth."""
    rows = {"truth": ("code", "xt_truth"), "B": ("B", "xt"), "B+S": ("B+S", "xt"), "randomized": ("code", "xt")}
    return _pictures("fig4", "blending", rows, results, split, out)


def fig12(results: Path, split: str, out: Path) -> str:
    """x-t slices of CAM and its rivals, from the same first chunk."""
    names = (
        "rendering", "cam", "cam-shipped", "cam-shipped-replacement", "concat_cond", "add_cond", "replacement", "none",
    )  # fmt: skip
    return _pictures("fig12", "cam", {name: (name, "xt") for name in names}, results, split, out)


def fig14(results: Path, split: str, out: Path) -> str:
    """Frames of a hidden-sprite case with APM, without, and as it should be; a case that counts in most arms."""
    names = ("rendering", "apm", "with", "apm_null", "alpha0")
    group = pictured(results, "apm", split)
    rows = {name: (name, "strip") for name in names}
    text = _pictures("fig14", "apm", rows, results, split, out, wide=True, video=that_counts(group, names))
    return text + read_of_strips(group, names)


def that_counts(group: Group | None, arms: Sequence[str]) -> int:
    """Which of the videos with pictures counts in most arms; the first of several, and without any."""
    totals: dict[int, float] = {}
    for video in (v for arm in (arms if group else ()) for r in group.rows.get(arm, []) for v in r["videos"]):
        if "strip" in video.get("pictures", {}):
            totals[video["index"]] = totals.get(video["index"], 0) + (video["values"].get("counts") or 0)
    return max(totals, key=totals.get) if totals else 0


def read_of_strips(group: Group | None, arms: Sequence[str]) -> str:
    """What the reader made of each strip of Fig. 14: does the case count, did the sprite return, as itself?"""
    rows = []
    for arm in arms if group else ():
        for run in group.rows.get(arm, []):
            for video in run["videos"]:
                if "strip" in video.get("pictures", {}):
                    v = [video["values"].get(name) for name in ("counts", "returned", "waiting", "pattern_kept")]
                    said = ["–" if x is None else f"{x:g}" for x in v]
                    rows.append([arm, str(video["index"]), video["prompt"], *said])
    head = ["arm", "video", "prompt", "counts", "returned", "frames waited", "pattern kept"]
    return f"\n{markdown(head, rows)}\n\n1 is yes, 0 is no; a case that does not count says nothing.\n" if rows else ""


def _pictures(
    what: str, suite: str, rows: dict[str, tuple[str, str]], results: Path, split: str, out: Path, wide: bool = False,
    video: int | None = None,
) -> str:  # fmt: skip
    """Pictures of several arms drawn together, of one video or of the first ones; arms without one say so."""
    group = pictured(results, suite, split)
    if group is None:
        return f"## {what}\n\n{not_run(suite, split)}"
    pictures = {title: pictures_of(group, arm, kind, video) for title, (arm, kind) in rows.items()}
    count = max((len(p) for p in pictures.values()), default=0) or 1
    if wide:
        figure, axes = _figure(len(rows) * count, 1, 7, 0.75)
        places = {(title, i): axes[i * len(rows) + k][0] for k, title in enumerate(rows) for i in range(count)}
    else:
        figure, axes = _figure(count, len(rows), 1.35, 1.9)
        places = {(title, i): axes[i][k] for k, title in enumerate(rows) for i in range(count)}
    for (title, i), axis in places.items():
        axis.set(xticks=[], yticks=[], title=title)
        axis.title.set_fontsize(8)
        if i < len(pictures[title]):
            picture = _read(results / suite / pictures[title][i])
            axis.imshow(picture, aspect="equal" if wide else "auto", interpolation="nearest")
        else:
            axis.text(0.5, 0.5, NOT_RUN, ha="center", va="center", transform=axis.transAxes)
    figure.savefig(out / f"{what}.png", dpi=110)
    missing = [title for title, found in pictures.items() if not found]
    text = f"## {what}\n\n![{group.title}]({what}.png)\n"
    return text + (f"\nnot run: {', '.join(missing)} (`st2v evaluate {suite} --split {split}`)\n" if missing else "")


def pictured(results: Path, suite: str, split: str) -> Group | None:
    """The group that pictures are taken from: one sprite at the world's speed; of several the one with most arms."""
    return max(plain(groups(results, suite, split)), key=lambda g: len(g.rows), default=None)


def pictures_of(group: Group, arm: str, kind: str, video: int | None = None) -> list[str]:
    """File names of an arm's pictures of that kind, by video, or of one video alone."""
    for run in group.rows.get(arm, []):
        chosen = [v for v in run["videos"] if video in (None, v["index"])]
        names = [v["pictures"][kind] for v in chosen if kind in v.get("pictures", {})]
        if names:
            return names
    return []


def _read(path: Path):
    import cv2

    picture = cv2.imread(str(path))
    if picture is None:
        raise UserError(f"{path} is missing or damaged; a result file names it: get it back, or run the suite again")
    return picture[..., ::-1]


def _figure(rows: int, columns: int, width: float, height: float):
    """A figure without a window, and its axes as rows of columns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
