"""The floors that shipped weights are held to, from result files: what was measured, and whether it is enough.

A floor is met by the bound of the interval where it says so, by the mean elsewhere.
"""

from __future__ import annotations

import math
from pathlib import Path

from st2v_lib.evaluation.scoring import PARTS
from st2v_lib.evaluation.statistics import interval, paired_difference
from st2v_lib.evaluation.tables import NOT_RUN, Group, groups, markdown, show

SHARE_OF_CEILING = 0.95
LATE_LOSS = -0.04
SEAM_PX = 0.25
PERMANENCE = {"first_permanence": 0.95, "at224_permanence": 0.93, "last100_permanence": 0.90}
MOTION_KEPT = (0.8, 1.25)
DRIFT_SIGNED, DRIFT_ABS = 0.03, 0.06
ENHANCER_DB, ENHANCER_ENERGY = 0.5, (0.8, 1.2)
NOTHING = "nothing to measure"

Row = tuple[str, str, str, str]


def floors(results: Path, split: str, out: Path) -> str:
    """All floors, one line each."""
    rows = [
        *first_chunk(results, split),
        *long_videos(results, split),
        *seams(results, split),
        *enhancer(results, split),
    ]
    return f"## floors, {split} split\n\n{markdown(['what', 'floor', 'measured', 'met'], rows)}\n"


def pick(results: Path, suite: str, split: str, arms: tuple[str, ...], frames: int | None = None) -> Group | None:
    """The group of one-sprite scenes at the world's speed that has those arms and length."""
    for group in groups(results, suite, split):
        runs = group.rows.get(arms[0], [])
        options = runs[0]["identity"]["options"] if runs else {}
        plain = options.get("sprites") == 1 and options.get("speed") == "world"
        if plain and frames in (None, options["frames"]) and all(a in group.rows for a in arms):
            return group
    return None


def first_chunk(results: Path, split: str) -> list[Row]:
    """Captions of first chunks as shares of the reader's own accuracy on renderings."""
    group, rows = pick(results, "first-chunk", split, ("generated", "rendering")), []
    floor = f"≥ {SHARE_OF_CEILING:.0%} of the reader's"
    for part in PARTS:
        what = f"first chunk: {part}"
        if group is None:
            rows.append((what, floor, NOT_RUN, ""))
            continue
        made, ceiling = (
            interval(list(group.values(a, f"right_{part}").values()), share=True) for a in ("generated", "rendering")
        )
        share = made.mean / ceiling.mean if ceiling.mean else math.nan
        if math.isnan(share):
            rows.append((what, floor, NOTHING, ""))
            continue
        text = f"{show(made, percent=True)} of {100 * ceiling.mean:.1f} %: {100 * share:.1f} %"
        rows.append((what, floor, text, met(share >= SHARE_OF_CEILING)))
    return rows


def long_videos(results: Path, split: str) -> list[Row]:
    """What is left after 240 and 1200 frames."""
    rows = []
    short = pick(results, "long", split, ("full",), 240) or pick(results, "long", split, ("full",), 1200)
    for part in PARTS:
        floor, what = f"lower bound ≥ {LATE_LOSS:.0%}", f"frames 224-239 less 0-15: {part}"
        if short is None:
            rows.append((what, floor, NOT_RUN, ""))
            continue
        found = paired_difference(short.values("full", f"at224_{part}"), short.values("full", f"first_{part}"))
        rows.append((what, floor, show(found, percent=True, signed=True), met(found.low >= LATE_LOSS)))
    longest = pick(results, "long", split, ("full",), 1200)
    where = {"first_permanence": "0-15", "at224_permanence": "224-239", "last100_permanence": "1100-1199"}
    for name, floor in PERMANENCE.items():
        group = longest if name == "last100_permanence" else short
        rows.append(mean_row(group, name, f"object permanence, frames {where[name]}", floor))
    (low, high), what = MOTION_KEPT, "motion kept, 1100-1199 over 0-99"
    if longest is None:
        rows.append((what, f"{low}-{high}", NOT_RUN, ""))
    else:
        kept = interval(list(longest.values("full", "motion_kept").values()))
        rows.append((what, f"{low}-{high}", show(kept), met(low <= kept.mean <= high)))
    for quantity in ("colour", "contrast"):
        what, floor = f"drift over 1200 frames: {quantity}", "signed within ±3 %, absolute ≤ 6 %"
        if longest is None:
            rows.append((what, floor, NOT_RUN, ""))
            continue
        signed, size = (
            interval(list(longest.values("full", f"drift_{quantity}_{kind}_share").values()))
            for kind in ("signed", "abs")
        )
        text = f"signed {show(signed, percent=True, signed=True)}, absolute {show(size, percent=True)}"
        fine = abs(signed.mean) <= DRIFT_SIGNED and size.mean <= DRIFT_ABS
        rows.append((what, floor, text, met(fine)))
    return rows


def seams(results: Path, split: str) -> list[Row]:
    """Seam residual of the shipped memories."""
    group = pick(results, "cam", split, ("full-shipped",))
    what, floor = "seam residual with CAM", f"within ±{SEAM_PX} px (both bounds)"
    if group is None:
        return [(what, floor, NOT_RUN, "")]
    found = interval(list(group.values("full-shipped", "seam_residual").values()))
    text = NOTHING if math.isnan(found.mean) else f"{show(found)} px"
    if "rendering" in group.rows:  # what the reader alone makes of a path without seams
        text += f"; renderings {show(interval(list(group.values('rendering', 'seam_residual').values())))} px"
    return [(what, floor, text, met(max(abs(found.low), abs(found.high)) <= SEAM_PX))]


def enhancer(results: Path, split: str) -> list[Row]:
    """The enhancer at its best level over bicubic, and its fine energy where it is run."""
    blended, swept = (
        pick(results, s, split, (a,)) for s, a in (("blending", "bicubic"), ("blending-sweep", "start100"))
    )
    what, floor = "enhancer over bicubic at its best level", f"≥ {ENHANCER_DB} dB"
    rows: list[Row] = []
    if blended is None or swept is None:
        rows.append((what, floor, NOT_RUN, ""))
    else:
        bicubic = blended.values("bicubic", "psnr")
        gains = {a: paired_difference(swept.values(a, "psnr"), bicubic) for a in swept.rows if a.startswith("start")}
        best = max(gains, key=lambda a: gains[a].mean)
        text = f"{best}: {show(gains[best], signed=True)} dB"
        rows.append((what, floor, text, met(gains[best].mean >= ENHANCER_DB)))
    if blended is None or "code" not in blended.rows:
        return [*rows, ("fine energy at the operating level", "within ±20 % of truth", NOT_RUN, "")]
    energy = interval(list(blended.values("code", "fine_energy").values()))
    fine = ENHANCER_ENERGY[0] <= energy.mean <= ENHANCER_ENERGY[1]
    rows.append(("fine energy at the operating level", "within ±20 % of truth", show(energy), met(fine)))
    read = paired_difference(blended.values("code", "read_right"), blended.values("code", "input_read_right"))
    text = show(read, percent=True, signed=True)
    return [*rows, ("read rightly, enhanced less its input", "≥ 0", text, met(read.mean >= 0))]


def mean_row(group: Group | None, name: str, what: str, floor: float) -> Row:
    """A floor on a mean share."""
    if group is None:
        return (what, f"≥ {floor:.0%}", NOT_RUN, "")
    found = interval(list(group.values("full", name).values()), share=True)
    return (what, f"≥ {floor:.0%}", show(found, percent=True), met(found.mean >= floor))


def met(fine: bool) -> str:
    """Yes or no."""
    return "yes" if fine else "no"
