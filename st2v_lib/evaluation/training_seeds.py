"""What one training seed alone would have said: the interval over videos knows nothing of another training run.

Averaging seeds makes the luck of training smaller, but the interval over videos still leaves it out, so it stays too
narrow for a statement about the *method*. How far apart the seeds are, and whether a difference has the same sign in
each, tells of it; three seeds of one sign are a quarter of all draws even without any difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from st2v_lib.evaluation.statistics import Interval, interval, paired_difference
from st2v_lib.evaluation.tables import NOT_RUN, Column, Group, markdown, show


def signs(group: Group, a: str, b: str, value: str) -> str:
    """``"2 of 3"``: in how many training seeds ``a`` less ``b`` has the sign of their mean; empty with fewer than two.

    An arm that was not trained stands beside every seed of the other.
    """
    differences = by_seed(group, a, b, value)
    means = [d.mean for d in differences.values() if d.n]
    if len(means) < 2:
        return ""
    total = sum(means)
    return f"{sum((m > 0) == (total > 0) and m != 0 for m in means)} of {len(means)}"


def by_seed(group: Group, a: str, b: str, value: str) -> dict[int, Interval]:
    """Training seed -> ``a`` less ``b`` on the same videos, for the seeds that both have."""
    have = [group.training_seeds(arm) for arm in (a, b)]
    shared = have[0] & have[1] if all(have) else have[0] | have[1]
    return {s: paired_difference(*(group.values(arm, value, {s}) for arm in (a, b))) for s in sorted(shared)}


def by_training_seed(group: Group, arms: Sequence[str], column: Column, reference: str) -> str:
    """Each trained arm's value, and its difference to ``reference``, for every training seed alone."""
    arms = [arm for arm in arms if group.training_seeds(arm)]
    every = sorted({seed for arm in arms for seed in group.training_seeds(arm)})
    if not every:
        return f"no arm of this table was trained: {NOT_RUN}\n"
    rows = []
    for arm in arms:
        found = {seed: group.values(arm, column.value, {seed}) for seed in every}
        cells = [show(interval(list(v.values()), column.percent), column.percent) for v in found.values()]
        rows.append([arm, *cells, _spread(list(found.values()))])
        if arm == reference:
            continue
        found = by_seed(group, arm, reference, column.value)
        cells = [show(found[seed], column.percent, signed=True) if seed in found else "" for seed in every]
        same = signs(group, arm, reference, column.value)
        rows.append([f"{arm} less {reference}", *cells, f"one sign in {same}" if same else ""])
    head = [column.title, *(f"training seed {seed}" for seed in every), "over seeds"]
    return f"{markdown(head, rows)}\n"


def _spread(found: Sequence[dict[object, float]]) -> str:
    means = [interval(list(values.values())).mean for values in found]
    means = [mean for mean in means if mean == mean]
    return f"spread {max(means) - min(means):.3g}" if len(means) > 1 else ""
