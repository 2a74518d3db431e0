"""Result files to rows: which runs belong together, their values a video, and Markdown with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st2v_lib.errors import UserError
from st2v_lib.evaluation.paper import Claim
from st2v_lib.evaluation.results import read_results, values_of
from st2v_lib.evaluation.statistics import Interval, interval, over_runs, paired_difference, verdict

NOT_RUN = "not run"


@dataclass(frozen=True)
class Column:
    """One value of a table; ``better`` is 1 where more is better, -1 where less is, 0 where neither."""

    value: str
    title: str
    better: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table: the same kind of scenes and length, and the same training budget.

    Attributes:
        title: what they share.
        rows: arm -> its result files (noise and training seeds).
        kind, budget: of the scenes, and clips the arms were trained on (``None`` without trained arms).
    """

    title: str
    rows: dict[str, list[dict[str, Any]]]
    kind: str = ""
    budget: int | None = None

    def values(self, arm: str, name: str) -> dict[int, float]:
        """One value a video: the mean over the arm's seeds; empty when it was not run."""
        return over_runs([values_of(r, name) for r in self.rows.get(arm, [])])


def arm_of(result: Mapping[str, Any]) -> str:
    """The arm's name without its budget and training seed."""
    training = result["identity"].get("training")
    return training["arm"] if training else result["identity"]["arm"]


def groups(folder: Path, suite: str, split: str) -> list[Group]:
    """The suite's runs by kind of scenes, length and training budget; arms without training stand in each.

    Raises:
        UserError: when trained arms of one table start from different base models.
    """
    found = [r for r in read_results(folder, suite) if r["identity"]["split"] == split]
    kinds: dict[tuple, list[dict[str, Any]]] = {}
    for result in found:
        o = result["identity"]["options"]
        kinds.setdefault((o["frames"], o["sprites"], o["speed"]), []).append(result)
    out = []
    for (frames, sprites, speed), results in sorted(kinds.items()):
        title = f"{suite}, {split} split, {frames} frames, {'two sprites' if sprites == 2 else 'one sprite'}"
        title += ", fast" if speed == "fast" else ""
        trained = [r for r in results if r["identity"].get("training")]
        others = [r for r in results if not r["identity"].get("training")]
        if len({r["identity"]["training"]["base_sha256"] for r in trained}) > 1:
            raise UserError(f"{suite}: trained arms start from different base models; move the old results away")
        budgets = sorted({_budget(r) for r in trained}) or [None]
        for budget in budgets:
            rows: dict[str, list[dict[str, Any]]] = {}
            for result in others + [r for r in trained if _budget(r) == budget]:
                rows.setdefault(arm_of(result), []).append(result)
            name = title if budget is None else f"{title}, arms trained on {budget} clips"
            out.append(Group(name, rows, title, budget))
    return out


def _budget(result: Mapping[str, Any]) -> int:
    training = result["identity"]["training"]
    return training.get("clips_asked") or training["clips"]


def plain(found: Sequence[Group]) -> list[Group]:
    """The groups that headline claims are about: one sprite at the world's speed, the largest training budget."""
    kept = {}
    for group in found:  # sorted by budget within a kind
        options = next(iter(group.rows.values()))[0]["identity"]["options"]
        if (options["sprites"], options["speed"]) == (1, "world"):
            kept[group.kind] = group
    return list(kept.values())


def table(
    group: Group, arms: Sequence[str], columns: Sequence[Column], paper: Mapping[str, str], reference: str | None = None
) -> str:
    """Markdown: means with 95 % intervals, the paper's numbers beside; then differences to the reference arm.

    Args:
        group: the runs.
        arms: rows, in order; those that were not run say so, others of the group follow.
        columns: values to show.
        paper: the paper's number of an arm.
        reference: arm that the others are compared with on the same videos; ``None`` for no second table.
    """
    arms = [*arms, *(a for a in group.rows if a not in arms)]
    head = _head(columns)
    lines = []
    for arm in arms:
        runs = group.rows.get(arm, [])
        if not runs:
            lines.append([arm, "", "", *[NOT_RUN] * len(columns), str(paper.get(arm, ""))])
            continue
        cells = [show(interval(list(group.values(arm, c.value).values()), c.percent), c.percent) for c in columns]
        videos = len({v["index"] for r in runs for v in r["videos"]})
        lines.append([arm, str(videos), seeds_of(runs), *cells, str(paper.get(arm, ""))])
    text = f"### {group.title}\n\n{markdown(head, lines)}\n"
    if reference is None or reference not in group.rows:
        return text
    rows = []
    for arm in arms:
        if arm == reference or arm not in group.rows:
            continue
        cells = []
        for c in columns:
            found = paired_difference(group.values(arm, c.value), group.values(reference, c.value))
            said = f" ({verdict(found, c.better)})" if c.better and found.n > 1 else ""
            cells.append(show(found, c.percent, signed=True) + said)
        rows.append([arm, *cells])
    if rows:
        head = [f"less {reference}, same videos", *(c.title for c in columns)]
        text += f"\n{markdown(head, rows)}\n"
    return text


def _head(columns: Sequence[Column]) -> list[str]:
    return ["arm", "videos", "seeds", *(c.title + {1: " ↑", -1: " ↓", 0: ""}[c.better] for c in columns), "paper"]


def learning_curve(found: Sequence[Group], column: Column) -> str:
    """One value of every trained arm by its budget in clips; empty with fewer than two budgets."""
    text = ""
    for kind in dict.fromkeys(g.kind for g in found):
        curve = [g for g in found if g.kind == kind and g.budget is not None]
        if len(curve) < 2:
            continue
        arms = dict.fromkeys(a for g in curve for a, runs in g.rows.items() if runs[0]["identity"].get("training"))
        rows = [
            [a, *(show(interval(list(g.values(a, column.value).values()), column.percent)) for g in curve)]
            for a in arms
        ]
        head = [f"{column.title} by clips", *(str(g.budget) for g in curve)]
        text += f"### learning curve: {kind}\n\n{markdown(head, rows)}\n"
    return text


def judge(group: Group, claim: Claim) -> tuple[str, Interval]:
    """What the group says of a claim, and ``a`` less ``b``.

    Returns:
        ``"agrees"``, ``"does not agree"``, ``"tie"``, ``"too few"`` videos, or ``"not run"``.
    """
    found = paired_difference(group.values(claim.a, claim.value), group.values(claim.b, claim.value))
    said = {"better": "agrees", "worse": "does not agree"}
    heard = verdict(found, claim.better)
    return (said.get(heard, heard) if found.n else NOT_RUN), found


def claims_text(group: Group, claims: Sequence[Claim]) -> str:
    """The paper's claims against this group, one line each."""
    lines = []
    for claim in claims:
        said, found = judge(group, claim)
        difference = "" if said == NOT_RUN else f": {claim.value} {claim.a} less {claim.b} {show(found, signed=True)}"
        lines.append(f"* {claim.text}: **{said}**{difference}")
    return "\n".join(lines) + "\n"


def seeds_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """How many noise seeds, and training seeds where there were any."""
    noise = {r["identity"]["seed"] for r in runs}
    training = {r["identity"]["training"]["seed"] for r in runs if r["identity"].get("training")}
    return f"{len(noise)}" + (f" × {len(training)} trained" if training else "")


def show(found: Interval, percent: bool = False, signed: bool = False) -> str:
    """``mean [low, high]`` in three digits; a dash where there is nothing, no interval for one video."""
    if math.isnan(found.mean):
        return "–"
    factor, sign = (100 if percent else 1), "+" if signed else ""
    size = abs(found.mean * factor)
    places = 0 if size >= 100 else 1 if percent or size >= 10 else 2 if size >= 1 else 3
    low, mean, high = (f"{v * factor:{sign}.{places}f}" for v in (found.low, found.mean, found.high))
    unit = " %" if percent else ""
    return f"{mean}{unit}" if math.isnan(found.low) else f"{mean}{unit} [{low}, {high}]"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths)) + " |"  # noqa: E731
    return "\n".join([line(head), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *(line(r) for r in rows)])
