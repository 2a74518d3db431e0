"""Votes on pairs of videos, and whether they are more than chance: plain values and functions, no widget.

A ``Ballot`` never changes; ``cast`` and ``undo`` make the next one, ``tally`` counts, ``sign_test`` judges. The panel
of ``vote`` shows it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from st2v_lib.errors import InputError, OutputError, UserError

QUESTIONS = {
    "motion": "Which moves better?", "text": "Which fits the text better?", "overall": "Which is better over all?",
}  # fmt: skip
CHOICES = ("left", "same", "right")


@dataclass(frozen=True)
class Ballot:
    """What was asked and answered so far; the answers do not say which arm they are for, ``swapped`` does.

    Attributes:
        arms: the two names, never shown while voting.
        prompts: one for each pair.
        seed: of the order of the pairs and of their sides.
        order: pairs in the order in which they are shown.
        swapped: for each place in that order: is the first arm on the right?
        votes: ``"left"``, ``"same"`` or ``"right"``, question after question of pair after pair.
    """

    arms: tuple[str, str]
    prompts: tuple[str, ...]
    seed: int
    order: tuple[int, ...]
    swapped: tuple[bool, ...]
    votes: tuple[str, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to answer."""
        return len(self.votes) == len(self.order) * len(QUESTIONS)

    @property
    def place(self) -> tuple[int, str]:
        """The place in the order and the question that come next.

        Raises:
            UserError: when all is answered.
        """
        if self.is_done:
            raise UserError("every question of this ballot is answered")
        return len(self.votes) // len(QUESTIONS), tuple(QUESTIONS)[len(self.votes) % len(QUESTIONS)]


@dataclass(frozen=True)
class Tally:
    """Pairs that the first arm won, lost and drew in one question."""

    wins: int
    losses: int
    draws: int


def new_ballot(arms: Sequence[str], prompts: Sequence[str], seed: int) -> Ballot:
    """An empty ballot; half of the pairs (rounded at random) have the first arm on the right, in a drawn order.

    Raises:
        InputError: for anything but two different names, or without a prompt.
    """
    if len(arms) != 2 or arms[0] == arms[1] or not prompts:
        raise InputError(f"expected two different arms and one prompt or more, got {list(arms)} and {len(prompts)}")
    rng, n = np.random.default_rng(seed), len(prompts)
    order = tuple(int(i) for i in rng.permutation(n))
    right = set(rng.permutation(n)[: n // 2 + int(n % 2 and rng.random() < 0.5)].tolist())
    return Ballot(tuple(arms), tuple(prompts), seed, order, tuple(i in right for i in range(n)))


def cast(ballot: Ballot, choice: str) -> Ballot:
    """The ballot with one more answer.

    Raises:
        InputError: for an answer that there is no button for.
        UserError: when all is answered.
    """
    if choice not in CHOICES:
        raise InputError(f"expected one of {', '.join(CHOICES)}, got {choice!r}")
    _ = ballot.place
    return dataclasses.replace(ballot, votes=(*ballot.votes, choice))


def undo(ballot: Ballot) -> Ballot:
    """The ballot without its last answer; an empty one stays empty."""
    return dataclasses.replace(ballot, votes=ballot.votes[:-1])


def scores(ballot: Ballot, question: str) -> dict[int, int]:
    """Pair -> 1 where the first arm won that question, -1 where it lost, 0 for a draw; what is open is left out."""
    column, out = tuple(QUESTIONS).index(question), {}
    for place, (pair, swapped) in enumerate(zip(ballot.order, ballot.swapped)):
        at = place * len(QUESTIONS) + column
        if at < len(ballot.votes):
            sign = CHOICES.index("right") - 1 - CHOICES.index(ballot.votes[at])  # left 1, same 0, right -1
            out[pair] = -sign if swapped else sign
    return out


def tally(ballots: Iterable[Ballot], question: str) -> Tally:
    """Pairs won, lost and drawn; several voters on one pair count as one, by their majority.

    Votes of many people on the same two videos are not independent evidence about the *methods*: the unit is the pair.

    Raises:
        InputError: when the ballots are about different videos.
    """
    ballots = list(ballots)
    if len({(b.arms, b.prompts) for b in ballots}) > 1:
        raise InputError("these ballots are about different arms or prompts; count them apart")
    total: dict[int, int] = {}
    for ballot in ballots:
        for pair, score in scores(ballot, question).items():
            total[pair] = total.get(pair, 0) + score
    signs = [(v > 0) - (v < 0) for v in total.values()]
    return Tally(signs.count(1), signs.count(-1), signs.count(0))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial test: how likely is a split at least as uneven, if both sides win with even chance?

    Draws carry no sign and are left out beforehand.

    Raises:
        InputError: for negative numbers.
    """
    if wins < 0 or losses < 0:
        raise InputError(f"expected counts of 0 or more, got {wins} and {losses}")
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def report(ballots: Sequence[Ballot]) -> str:
    """One Markdown line a question: wins, losses, draws, the share won with its interval, and the sign test."""
    from st2v_lib.evaluation.statistics import Interval, wilson
    from st2v_lib.evaluation.tables import markdown, show

    if not ballots:
        return "no votes yet"
    first, second = ballots[0].arms
    rows = []
    for question in QUESTIONS:
        found = tally(ballots, question)
        n = found.wins + found.losses
        share = show(Interval(found.wins / n, *wilson(found.wins, n), n), percent=True) if n else "–"
        p = sign_test(found.wins, found.losses)
        said = "no difference shown" if p > 0.05 else f"{first if found.wins > found.losses else second} is better"
        rows.append([question, str(found.wins), str(found.losses), str(found.draws), share, f"{p:.3g}", said])
    head = ["question", f"{first} wins", f"{second} wins", "draws", "won of decided", "sign test p", "says"]
    return f"{markdown(head, rows)}\n\n{len(ballots)} voter{'s' * (len(ballots) > 1)}, {len(ballots[0].order)} pairs\n"


def save(ballot: Ballot, path: str | Path) -> None:
    """Writes the ballot as JSON, whole or not at all.

    Raises:
        OutputError: when the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dataclasses.asdict(ballot), indent=1) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"votes cannot be saved in {path.name}: {error.strerror}") from error


def read_ballots(paths: Iterable[str | Path]) -> list[Ballot]:
    """Ballots from files; a file that is not there is left out.

    Raises:
        UserError: for a file that holds something else.
    """
    out = []
    for path in (Path(p) for p in paths):
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text())
            out.append(Ballot(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}))
            if not set(out[-1].votes) <= set(CHOICES) or len(out[-1].votes) > len(out[-1].order) * len(QUESTIONS):
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path.name} holds no votes of this kit; move it away") from None
    return out
