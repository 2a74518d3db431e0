"""Tab. 1: the paper's methods as mechanisms on one base, and what one training seed alone would have said.

The paper compares released models, each with a base, data and a size of its own. Here the ways to carry a video on that
they stand for share one base, at equal budget (``paper.STANDS_FOR``). Rivals of CAM are trained and tested in the suite
``cam``, from the same first chunk; last-frame CLIP conditioning and independent chunks also in ``long``, at 240 frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from st2v_lib.evaluation import paper
from st2v_lib.evaluation.results import values_of
from st2v_lib.evaluation.statistics import interval, over_runs, paired_difference
from st2v_lib.evaluation.tables import (
    NOT_RUN,
    Column,
    Group,
    claims_text,
    groups,
    markdown,
    not_run,
    plain,
    show,
    table,
)

COLUMNS = (
    Column("mawe_code", "MAWE", -1), Column("scuts", "SCuts", -1), Column("clip_score", "CLIP", 1),
    Column("motion", "motion, px"),
)  # fmt: skip
ARMS = {  # suite -> rows in the order of the paper, and the row that others are compared with
    "long": (("last_frame_clip", "none", "no_apm", "full", "rendering"), "full"),
    "cam": (("concat_cond", "add_cond", "none", "cam", "full-shipped", "rendering"), "cam"),
}


def table1(results: Path, split: str, out: Path) -> str:
    """Mechanisms of Tab. 1 with the paper's numbers beside, and the paper's rows that have no counterpart."""
    beside = {arm: "; ".join(map(numbers, methods)) for arm, methods in paper.STANDS_FOR.items()}
    parts = ["## table1\n"]
    for suite, (arms, reference) in ARMS.items():
        found = plain(groups(results, suite, split))
        if not found:
            parts.append(not_run(suite, split, arms, COLUMNS, beside))
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
    return Group(group.title, rows, group.kind, group.budget)


def by_training_seed(group: Group, arms: Sequence[str], column: Column, reference: str) -> str:
    """Each trained arm's value and its difference to ``reference`` for every training seed alone, then for all.

    The interval over videos knows nothing of another training run; how far apart the seeds are tells of it.
    """
    arms = [arm for arm in arms if seeds(group, arm)]
    every = sorted({seed for arm in arms for seed in seeds(group, arm)})
    if not every:
        return f"no arm of this table was trained: {NOT_RUN}\n"
    rows = []
    for arm in arms:
        found = {seed: of_seed(group, arm, seed, column.value) for seed in every}
        cells = [show(interval(list(v.values()), column.percent), column.percent) for v in found.values()]
        rows.append([arm, *cells, _spread(list(found.values()))])
        if arm == reference:
            continue
        others = {seed: of_seed(group, reference, seed, column.value) for seed in every}
        differences = [paired_difference(found[seed], others[seed]) for seed in every]
        signs = {d.mean > 0 for d in differences if d.n}
        same = "one sign" if len(signs) == 1 else "signs differ" if signs else ""
        rows.append([f"{arm} less {reference}", *(show(d, column.percent, signed=True) for d in differences), same])
    head = [column.title, *(f"training seed {seed}" for seed in every), "over seeds"]
    return f"{markdown(head, rows)}\n"


def seeds(group: Group, arm: str) -> list[int]:
    """Training seeds of an arm; none for arms that were not trained."""
    runs = [r["identity"]["training"] for r in group.rows.get(arm, [])]
    return sorted({training["seed"] for training in runs if training})


def of_seed(group: Group, arm: str, seed: int, value: str) -> dict[object, float]:
    """One value a video from the runs of one training seed."""
    runs = [r for r in group.rows.get(arm, []) if (r["identity"]["training"] or {}).get("seed") == seed]
    return over_runs([values_of(run, value) for run in runs])


def _spread(found: Sequence[dict[object, float]]) -> str:
    means = [interval(list(values.values())).mean for values in found]
    means = [mean for mean in means if mean == mean]
    return f"spread {max(means) - min(means):.3g}" if len(means) > 1 else ""
