"""What has not been run: one line a suite, with the command that runs it and what that takes."""

from __future__ import annotations

from collections.abc import Mapping

from st2v_lib.config import TINY
from st2v_lib.evaluation.suite import Options

CHUNK_SECONDS = {"stage 2": 4.0, "enhancer": 11.0}  # of one chunk of one video on one CPU core, roughly


def not_run(suite: str, split: str, beside: Mapping[str, str] | None = None) -> str:
    """The line of a suite without results.

    Args:
        suite, split: what was not run.
        beside: arm -> the paper's numbers for it, given after the line.
    """
    videos, hours, trains = cost(suite)
    text = (
        f"**{suite}: not run.** `st2v evaluate {suite} --split {split}` makes {videos} videos: {hours} on one CPU core"
    )
    text += " (`--estimate` says what it takes here)."
    if trains:
        text += " Arms with weights of their own come on top: `python -m st2v_lib.evaluation.full_run --plan`."
    numbers = "; ".join(f"{arm}: {value}" for arm, value in (beside or {}).items())
    return f"{text}\n" + (f"\nIn the paper: {numbers}.\n" if numbers else "")


def cost(suite: str) -> tuple[int, str, bool]:
    """Videos of the suite's own arms, the time they take in words, and whether trained arms belong to it."""
    from st2v_lib.evaluation.cli import SUITES

    found = SUITES[suite]
    made = [arm.config(TINY) for arm in found.arms if arm.how.get("source") is None]
    chunks = found.videos * sum(found.calls(Options(), found.frames, config) for config in made)
    hours = chunks * CHUNK_SECONDS["enhancer" if "enhancer" in found.parts else "stage 2"] / 3600
    words = f"about {max(1, round(60 * hours))} minutes" if hours < 1.5 else f"about {hours:.0f} hours"
    return found.videos * len(found.arms), words, bool(found.trained)
