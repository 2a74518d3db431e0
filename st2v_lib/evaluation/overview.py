"""What was run, and what of the paper holds: every claim that the kit can test, in one table."""

from __future__ import annotations

from pathlib import Path

from st2v_lib.cli import SUITES
from st2v_lib.evaluation import paper
from st2v_lib.evaluation.results import read_results
from st2v_lib.evaluation.tables import NOT_RUN, arm_of, comparable, groups, judge, markdown, show
from st2v_lib.evaluation.training_seeds import signs

CLAIMS = (  # where in the paper, suite, claims
    ("Tab. 1", "long", paper.TABLE1_CLAIMS["long"]),
    ("Tab. 1", "cam", paper.TABLE1_CLAIMS["cam"]),
    ("CAM, §5.3", "cam", paper.CLAIMS["table-cam"]),
    ("CAM", "cam-hidden", paper.CLAIMS["cam-hidden"]),
    ("APM, §5.3", "apm", paper.CLAIMS["table-apm"]),
    ("blending, §5.3", "blending", paper.CLAIMS["table-blending"]),
    ("blending, §5.3", "blending-levels", paper.CLAIMS["blending-levels"]),
)


def overview(results: Path, split: str, out: Path) -> str:
    """The inventory and the claims."""
    return f"## overview, {split} split\n\n{inventory(results, split)}\n{claims(results, split)}"


def inventory(results: Path, split: str) -> str:
    """Result files of each suite: how many, on how many videos, with which weights; or how to make them."""
    rows = []
    for suite in SUITES:
        found = [r for r in read_results(results, suite) if r["identity"]["split"] == split]
        if not found:
            rows.append([suite, "0", "", "", f"{NOT_RUN}: `st2v evaluate {suite} --split {split}`"])
            continue
        videos = {len(r["videos"]) for r in found}
        shown = f"{min(videos)}" if len(videos) == 1 else f"{min(videos)} to {max(videos)}"
        hashes = {r["identity"].get("weights_sha256", "")[:8] for r in found if not r["identity"].get("training")}
        arms = len({arm_of(r) for r in found})
        rows.append([suite, str(len(found)), str(arms), shown, ", ".join(sorted(hashes - {""}))])
    return markdown(["suite", "files", "arms", "videos each", "shipped weights, or what to run"], rows) + "\n"


def claims(results: Path, split: str) -> str:
    """Each claim, the paper's or ours, with its paired difference and what it says, then how many of each kind."""
    rows, count = [], dict.fromkeys(("agrees", "does not agree", "tie", "too few", NOT_RUN), 0)
    for where, suite, listed in CLAIMS:
        found = comparable(groups(results, suite, split))
        for claim in listed:
            for group in found or [None]:
                said, difference = judge(group, claim) if group else (NOT_RUN, None)
                count[said] += 1
                number = "" if said == NOT_RUN else f"{show(difference, signed=True)}, {difference.n} videos"
                what = f"{claim.value}: {claim.a} less {claim.b}"
                same = signs(group, claim.a, claim.b, claim.value) if group else ""
                who, place = "ours" if claim.ours else where, group.title if group else suite
                rows.append([who, claim.text, what, place, number, said, same])
    total = "; ".join(f"{n} {said}" for said, n in count.items())
    head = ["whose", "claim", "tested as", "where", "difference", "says", "training seeds of one sign"]
    return f"{markdown(head, rows)}\n\nOf {len(rows)}: {total}.\n"
