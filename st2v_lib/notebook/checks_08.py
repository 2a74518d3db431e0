"""Exercise checkers of ``08_ablation_lab``: when a switch is decided, what may be run, what a pair of runs says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from st2v_lib.notebook.checks import call, checker, compare, passed
from st2v_lib.notebook.lab_state import SWITCHES, Arm, LabState, why_not

RIVAL = "add_cond"


@checker
def check_when(fn: Callable) -> None:
    """``fn(name)``: ``"training"`` or ``"inference"`` for each switch of the lab, and for three more."""
    more = {"learning rate": "training", "frames that CAM was trained to carry": "training", "VAE tiles": "inference"}
    hints = {
        "conditioning": "each mechanism has parameters of its own, and they were learnt together with it",
        "apm": "off, grey or another frame: the same APM weights, given another anchor or none",
        "guidance": "the two branches are mixed after the network has answered; nothing is learnt for it",
        "frames that CAM was trained to carry": "the name says it: another number needs another training",
    }
    for name, want in {**{name: switch.when for name, switch in SWITCHES.items()}, **more}.items():
        got = call(fn, name)
        hint = hints.get(name, "would the same files of weights still serve with another value?")
        assert got == want, f"{name}: expected {want!r}, got {got!r}. Hint: {hint}"
    passed("when")


@checker
def check_possible(fn: Callable) -> None:
    """``fn(conditioning, apm, found)``: may this pair of memories be run with the trained weights in ``found``?

    ``found`` is a set of names such as ``{"cam", "apm"}``. A mechanism needs its own weights, ``"none"`` needs none;
    APM was trained beside ``"cam"`` alone, and ``apm="off"`` needs nothing.
    """
    for found in (frozenset({"cam", "apm"}), frozenset({"cam"}), frozenset({"cam", "apm", RIVAL}), frozenset()):
        for conditioning in ("cam", RIVAL, "none"):
            for apm in ("first", "grey", "off"):
                arm = Arm(conditioning=conditioning, apm=apm)
                pairs = (("conditioning", conditioning), ("apm", apm))
                reasons = [why_not(LabState(), name, value, arm, found) for name, value in pairs]
                want, got = not any(reasons), call(fn, conditioning, apm, set(found))
                why = next((reason for reason in reasons if reason), "each part has its weights, and both fit together")
                case = f"{conditioning!r} with apm={apm!r} and weights of {', '.join(sorted(found)) or 'nothing'}"
                assert bool(got) == want, f"{case}: expected {want}, got {got!r}. Hint: {why}"
    passed("possible")


@checker
def check_paired(fn: Callable) -> None:
    """``fn(baseline, ablated)``: mean difference over pairs and its standard error, from one value a seed each.

    Ablated less baseline. A pair counts if both values are defined (not nan); fewer than two pairs: ``(nan, nan)``.
    """
    rng = np.random.default_rng(8)
    cases = []
    for count in (2, 3, 8, 20):
        base = rng.normal(50, 20, count)  # scenes differ a lot
        cases.append((base, base + rng.normal(1, 0.5, count)))
    holed = [np.array([1.0, math.nan, 3.0, 5.0]), np.array([2.0, 2.0, math.nan, 9.0])]
    cases += [tuple(holed), (np.array([1.0]), np.array([2.0]))]
    for base, other in cases:
        kept = ~np.isnan(base) & ~np.isnan(other)
        change = (other - base)[kept]
        few = len(change) < 2
        want = (math.nan, math.nan) if few else (change.mean(), change.std(ddof=1) / math.sqrt(len(change)))
        answer = call(fn, base, other)
        assert isinstance(answer, (tuple, list)) and len(answer) == 2, (
            "return two numbers: (mean difference, standard error)"
        )
        compare("mean difference", answer[0], want[0], "ablated less baseline, over pairs of which both are defined")
        hint = "the standard deviation of the differences (ddof=1) over the root of their number"
        if not few:
            apart = math.sqrt((base[kept].var(ddof=1) + other[kept].var(ddof=1)) / len(change))
            if np.isclose(answer[1], apart):
                hint = "this is the error of two groups that have nothing in common; subtract pair by pair first"
            elif np.isclose(answer[1], change.std(ddof=1)):
                hint = "that is the spread of one pair; the mean of n pairs is known better, by the root of n"
        compare("standard error", answer[1], want[1], hint)
    passed("paired")
