"""Tab. 1: the paper's methods as mechanisms on one base.

The paper compares released models, each with a base, data and a size of its own. Here the ways to carry a video on that
they stand for share one base, at equal budget (``paper.STANDS_FOR``). Rivals of CAM are trained and tested in the suite
``cam``, from the same first chunk; last-frame CLIP conditioning, FreeNoise and independent chunks in ``long``, at 240
frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from st2v_lib.evaluation import paper
from st2v_lib.evaluation.tables import (
    Column,
    Group,
    claims_text,
    comparable,
    groups,
    markdown,
    table,
)
from st2v_lib.evaluation.waiting import not_run

COLUMNS = (
    Column("mawe_code", "MAWE", -1), Column("scuts", "SCuts", -1), Column("clip_score", "CLIP", 1),
    Column("motion", "motion, px"),
)  # fmt: skip
ARMS = {  # suite -> rows in the order of the paper, and the row that others are compared with
    "long": (("free_noise", "last_frame_clip", "none", "no_apm", "full", "rendering"), "full"),
    "cam": (
        ("concat_cond", "add_cond", "none", "cam", "cam-shipped", "full-shipped", "rendering"),
        "cam",
    ),
}


def table1(results: Path, split: str, out: Path) -> str:
    """Mechanisms of Tab. 1 with the paper's numbers beside, and the paper's rows that have no counterpart."""
    beside = {arm: "; ".join(map(numbers, methods)) for arm, methods in paper.STANDS_FOR.items()}
    parts = ["## table1\n"]
    for suite, (arms, reference) in ARMS.items():
        found = comparable(groups(results, suite, split))
        if not found:
            parts.append(not_run(suite, split, {arm: beside[arm] for arm in arms if arm in beside}))
        for group in found:
            shown = only(group, arms)
            parts += [table(shown, arms, COLUMNS, beside, reference), claims_text(shown, paper.TABLE1_CLAIMS[suite])]
    rows = [[name, numbers(name), why] for name, why in paper.NOT_BUILT.items()]
    parts.append(f"### rows of the paper without an arm\n\n{markdown(['method', 'paper', 'why'], rows)}\n")
    return "\n".join(parts)


def numbers(method: str) -> str:
    """The paper's row of a method."""
    mawe, cuts, clip = paper.TABLE1[method]
    return f"{method}: MAWE {mawe:g}, SCuts {cuts:g}, CLIP {clip:g}"


def only(group: Group, arms: Sequence[str]) -> Group:
    """The group with these arms alone."""
    rows = {arm: runs for arm, runs in group.rows.items() if arm in arms}
    return replace(group, rows=rows)
