"""Result files to rows: which runs belong together, their values a video, and Markdown with intervals."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from st2v_lib.errors import UserError
from st2v_lib.evaluation.paper import Claim
from st2v_lib.evaluation.results import read_results, values_of
from st2v_lib.evaluation.statistics import Interval, interval, over_runs, paired_difference, verdict

NOT_RUN = "not run"
STAND_INS = {"cam": "cam-shipped", "apm_null": "alpha0"}  # of arms that must be trained first
TRUTH = "rendering"  # the arm that shows the true videos
FAST_NOTE = (
    "The base model never saw such speeds in training: what goes wrong here is not the memories' fault alone. Even the "
    f"true path bends more, so what counts is each arm less `{TRUTH}`."
)


@dataclass(frozen=True)
class Column:
    """One value of a table; ``better`` is 1 where more is better, -1 where less is, 0 where neither."""

    value: str
    title: str
    better: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table: the same kind of scenes and length, and the same training.

    Attributes:
        title: what they share.
        rows: arm -> its result files (noise and training seeds).
        kind, budget: of the scenes, and clips the arms were trained on (``None`` without trained arms).
        fast: the sprites move faster than in any training clip.
    """

    title: str
    rows: dict[str, list[dict[str, Any]]]
    kind: str = ""
    budget: int | None = None
    fast: bool = False

    def values(self, arm: str, name: str, seeds: Collection[int] | None = None) -> dict[int, float]:
        """One value a video: the mean over the arm's seeds; empty when it was not run.

        Args:
            arm, name: of the row and the value.
            seeds: of training; ``None`` for all. An arm that was not trained stands beside every seed.
        """
        runs = self.rows.get(arm, [])
        if seeds is not None:
            runs = [r for r in runs if not r["identity"]["training"] or r["identity"]["training"]["seed"] in seeds]
        return over_runs([values_of(r, name) for r in runs])

    def training_seeds(self, arm: str) -> set[int]:
        """Training seeds of an arm; none for an arm that was not trained."""
        return {r["identity"]["training"]["seed"] for r in self.rows.get(arm, []) if r["identity"]["training"]}

    def paired(self, a: str, b: str, name: str) -> Interval:
        """``a`` less ``b`` on the same videos; of two trained arms only the training seeds that both have."""
        ours, theirs = self.training_seeds(a), self.training_seeds(b)
        shared = ours & theirs if ours and theirs else None
        return paired_difference(self.values(a, name, shared), self.values(b, name, shared))


def arm_of(result: Mapping[str, Any]) -> str:
    """The arm's name without its budget and training seed."""
    training = result["identity"].get("training")
    return training["arm"] if training else result["identity"]["arm"]


def groups(folder: Path, suite: str, split: str) -> list[Group]:
    """The suite's runs by kind of scenes, length and training; arms without training stand in each.

    Arms of other clips, steps or processes are in groups of their own.

    Raises:
        UserError: when trained arms of one table start from different base models, or one has not reached its clips.
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
        for result in trained:
            arm, training = result["identity"]["arm"], result["identity"]["training"]
            if training["clips"] < (training.get("clips_asked") or 0):
                raise UserError(
                    f"{suite}: {arm} was trained on {training['clips']} of {training['clips_asked']} clips; go on with "
                    "st2v train --resume, evaluate it again and move its old results away"
                )
        for budget in sorted({_budget(r) for r in trained}) or [None]:
            rows: dict[str, list[dict[str, Any]]] = {}
            for result in others + [r for r in trained if _budget(r) == budget]:
                rows.setdefault(arm_of(result), []).append(result)
            name = title if budget is None else f"{title}, arms trained on {_in_words(*budget)}"
            out.append(Group(name, rows, title, budget and budget[0], speed == "fast"))
    return out


def _budget(result: Mapping[str, Any]) -> tuple[int, int, int]:
    """Clips, steps (0 where they were not recorded) and processes of a training."""
    training = result["identity"]["training"]
    clips = training.get("clips_asked") or training["clips"]
    return clips, training.get("steps") or 0, training.get("processes") or 1


def _in_words(clips: int, steps: int, processes: int) -> str:
    text = f"{clips} clips" + (f" in {steps} steps" if steps else "")
    return text + (f" on {processes} processes" if processes > 1 else "")


def plain(found: Sequence[Group]) -> list[Group]:
    """The groups that headline claims are about: one sprite at the world's speed, the largest training budget."""
    kept = {}
    for group in found:  # sorted by budget within a kind
        options = next(iter(group.rows.values()))[0]["identity"]["options"]
        if (options["sprites"], options["speed"]) == (1, "world"):
            kept[group.kind] = group
    return list(kept.values())


def comparable(found: Sequence[Group]) -> list[Group]:
    """Of the plain groups those with two arms or more; one alone, such as a few very long videos, claims nothing."""
    return [group for group in plain(found) if len(group.rows) > 1]


def table(
    group: Group,
    arms: Sequence[str],
    columns: Sequence[Column],
    paper: Mapping[str, str],
    reference: str | None = None,
) -> str:
    """Markdown: means with 95 % intervals, the paper's numbers beside; then differences to the reference arm.

    A cell that rests on fewer videos than its row says on how many. Fast scenes are compared with their renderings too,
    since there even a true path bends.

    Args:
        group: the runs.
        arms: rows, in order; those that were not run say so, others of the group follow.
        columns: values to show.
        paper: the paper's number of an arm.
        reference: arm that the others are compared with on the same videos, or its stand-in from :data:`STAND_INS`
            where it was not run; ``None`` for no second table.
    """
    arms = [*arms, *(a for a in group.rows if a not in arms)]
    head = _head(columns)
    lines = []
    for arm in arms:
        runs = group.rows.get(arm, [])
        if not runs:
            lines.append([arm, "", "", *[NOT_RUN] * len(columns), str(paper.get(arm, ""))])
            continue
        videos = len({v["index"] for r in runs for v in r["videos"]})
        found = [interval(list(group.values(arm, c.value).values()), c.percent) for c in columns]
        cells = [show(f, c.percent) + _of(f.n, videos) for f, c in zip(found, columns)]
        lines.append([arm, str(videos), seeds_of(runs), *cells, str(paper.get(arm, ""))])
    text = f"### {group.title}\n\n{markdown(head, lines)}\n"
    chosen = reference if reference in group.rows else STAND_INS.get(reference)
    text += differences(group, arms, columns, chosen) if chosen else ""
    if group.fast:
        text += f"\n{FAST_NOTE}\n"
        if chosen != TRUTH:
            text += differences(group, arms, [replace(c, better=0) for c in columns], TRUTH)
    return text


def differences(group: Group, arms: Sequence[str], columns: Sequence[Column], reference: str) -> str:
    """Markdown: each arm less the reference on the same videos; empty where there is nothing to compare."""
    rows = []
    for arm in arms:
        if arm == reference or arm not in group.rows or reference not in group.rows:
            continue
        indices = [{v["index"] for r in group.rows[a] for v in r["videos"]} for a in (arm, reference)]
        cells = []
        for c in columns:
            found = group.paired(arm, reference, c.value)
            said = f" ({verdict(found, c.better)})" if c.better and found.n > 1 else ""
            cells.append(show(found, c.percent, signed=True) + _of(found.n, len(indices[0] & indices[1])) + said)
        rows.append([arm, *cells])
    head = [f"less {reference}, same videos", *(c.title for c in columns)]
    return f"\n{markdown(head, rows)}\n" if rows else ""


def _of(n: int, videos: int) -> str:
    return f", n = {n}" if 0 < n < videos else ""


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
        head = [f"{column.title} by training", *(g.title.removeprefix(f"{kind}, arms trained on ") for g in curve)]
        text += f"### learning curve: {kind}\n\n{markdown(head, rows)}\n"
    return text


def judge(group: Group, claim: Claim) -> tuple[str, Interval]:
    """What the group says of a claim, and ``a`` less ``b``.

    Returns:
        ``"agrees"``, ``"does not agree"``, ``"tie"``, ``"too few"`` videos, or ``"not run"``.
    """
    found = group.paired(claim.a, claim.b, claim.value)
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
