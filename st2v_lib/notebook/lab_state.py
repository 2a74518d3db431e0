"""The ablation lab's state: a baseline, what the ablated arm changes, and which combinations are possible.

First of three layers, state → ``lab_run.run(state)`` → ``lab_panel.LabPanel``; plain values, no networks, no widgets.
A switch is decided in *training* (another value needs other weights) or at *inference* (the same weights, used
otherwise); ``SWITCHES`` says which. What has no trained weights is refused with the reason, never run untrained.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st2v_lib.blending import LAWS, NAIVE
from st2v_lib.errors import InputError
from st2v_lib.manifest import weights_dir

CHUNK, CARRIED = 16, 8  # frames of a stage-2 chunk, and those it repeats of the one before; the base was trained so
FEWER = {"cam_4": 4, "cam_2": 2, "cam_1": 1}  # CAMs that were trained with fewer carried frames
SAMPLERS = {  # shown name -> sampler and eta
    "dpm++": ("dpm++", 0.0), "sde-dpm++": ("sde-dpm++", 0.0), "ddim": ("ddim", 0.0), "ddim, eta 1": ("ddim", 1.0),
}  # fmt: skip
FRAMES = (24, 32, 40, 48, 56, 64, 72, 80)
FIRST = ("rendered", "generated")  # where the first chunk comes from, or in stage 3 the whole video


@dataclass(frozen=True)
class Switch:
    """One thing that can be ablated.

    Attributes:
        label, about: for people.
        stage: 2 (memories and sampling), 3 (enhancer), or 0 for both.
        when: ``"training"`` or ``"inference"``.
        values: what it can be; empty for a number or a text.
        low, high: bounds of a number.
    """

    label: str
    about: str
    stage: int
    when: str
    values: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf


SWITCHES = {
    "conditioning": Switch(
        "short-term memory", "how a chunk sees the one before it; cam_4, cam_2, cam_1: CAM with fewer carried frames",
        2, "training", ("cam", *FEWER, "concat_cond", "add_cond", "none"),
    ),
    "apm": Switch(
        "long-term memory", "what APM keeps to: the first frame, the last one made, a grey picture, or nothing",
        2, "inference", ("first", "last", "grey", "off"),
    ),
    "paste": Switch(
        "pasted frames", "carried frames pasted into the chunk before each step, at its noise; not in the paper",
        2, "inference", ("off", "on"),
    ),
    "sampler": Switch("sampler", "the numerical method of denoising", 2, "inference", tuple(SAMPLERS)),
    "steps": Switch("steps", "denoising steps of each chunk", 2, "inference", low=1, high=50),
    "guidance": Switch("guidance", "weight of the prompt (1: none)", 2, "inference", low=0, high=15),
    "anchor_weight": Switch(
        "anchor's weight", "guidance by APM's anchor over that by the prompt; 1 in the paper, 0: not at all",
        2, "inference", low=0, high=5,
    ),
    "blend_law": Switch(
        "blending", "B, B+S: chunks on their own, without and with shared noise; code, paper: randomized, two laws",
        3, "inference", (*NAIVE, *LAWS),
    ),
    "chunk": Switch("chunk", "frames the enhancer sees at once", 3, "inference", low=8, high=32),
    "overlap": Switch("overlap", "frames that two of its chunks share", 3, "inference", low=0, high=16),
    "enhancer_steps": Switch("enhancer's steps", "denoising steps of each chunk", 3, "inference", low=2, high=30),
    "prompt": Switch("prompt", "what the models are told", 0, "inference"),
    "seed": Switch("seed", "of all noise", 0, "inference", low=0, high=2**31 - 1),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One setting of every switch; the defaults are the kit's method with a few steps less."""

    conditioning: str = "cam"
    apm: str = "first"
    paste: str = "off"
    sampler: str = "sde-dpm++"
    steps: int = 6
    guidance: float = 3.0
    anchor_weight: float = 1.0
    blend_law: str = "code"
    chunk: int = 24
    overlap: int = 8
    enhancer_steps: int = 4
    prompt: str = "a red circle bounces over green stripes"
    seed: int = 0

    @property
    def carried(self) -> int:
        """Frames that each chunk repeats of the one before."""
        return FEWER.get(self.conditioning, CARRIED)


@dataclass(frozen=True)
class LabState:
    """All that a result depends on, beside the weights.

    Attributes:
        baseline: the arm that is compared with.
        changes: switches that the ablated arm sets otherwise; all others follow the baseline.
        stage: which stage is run, 2 or 3.
        frames: length of both videos.
        first: ``"rendered"``: both arms go on from a true first chunk (in stage 3: enhance a true video) of a scene
            that the baseline's prompt describes; ``"generated"``: from what the baseline generates.
    """

    baseline: Arm = Arm()
    changes: Mapping[str, Any] = field(default_factory=lambda: {"conditioning": "none", "apm": "off"})
    stage: int = 2
    frames: int = 40
    first: str = "rendered"

    @property
    def ablated(self) -> Arm:
        """The baseline with the changes."""
        return dataclasses.replace(self.baseline, **self.changes)

    @property
    def arms(self) -> dict[str, Arm]:
        """Both arms by name."""
        return {"baseline": self.baseline, "ablated": self.ablated}

    def set(self, **new: Any) -> LabState:
        """A copy with lab fields (``stage``, ``frames``, ``first``, ``changes``) or switches of the baseline changed.

        What the ablated arm does not change follows; changes of the other stage are dropped with a new ``stage``.
        """
        if "stage" in new and "changes" not in new:
            new["changes"] = {n: v for n, v in self.changes.items() if SWITCHES[n].stage in (0, new["stage"])}
        arm = {name: value for name, value in new.items() if name in SWITCHES}
        rest = {name: value for name, value in new.items() if name not in SWITCHES}
        return dataclasses.replace(self, **{"baseline": dataclasses.replace(self.baseline, **arm), **rest}).tidy()

    def ablate(self, **changes: Any) -> LabState:
        """A copy whose ablated arm changes just this."""
        return dataclasses.replace(self, changes=changes).tidy()

    def tidy(self) -> LabState:
        """A copy without changes that change nothing, so that equal states have equal keys."""
        kept = {n: v for n, v in self.changes.items() if n not in SWITCHES or v != getattr(self.baseline, n)}
        return dataclasses.replace(self, changes=kept)

    def key(self) -> str:
        """A text that two states share when they are the same."""
        return "\n".join(_lines(self.tidy()))


def found_weights(folder: Path | None = None) -> frozenset[str]:
    """The components and arms whose trained weights lie in a folder (by default the kit's).

    ``"cam"``, ``"apm"``, ``"enhancer"``, and every ``arms/<name>/`` with a ``config.json``.
    """
    folder = folder or weights_dir("tiny")
    own = {name for name in ("cam", "apm", "enhancer") if (folder / name / "config.json").is_file()}
    return frozenset(own | {path.parent.name for path in folder.glob("arms/*/config.json")})


def idle(state: LabState, name: str, arm: Arm) -> str | None:
    """Why a switch does nothing in that arm, whatever it says; ``None``: it does something."""
    switch = SWITCHES[name]
    if switch.stage not in (0, state.stage):
        return f"it belongs to stage {switch.stage}, and stage {state.stage} is run"
    if name == "anchor_weight" and arm.apm == "off":
        return "without APM there is no anchor to weigh"
    return None


def why_not(state: LabState, name: str, value: Any, arm: Arm, found: frozenset[str]) -> str | None:
    """Why a switch cannot take a value in that arm: one sentence with the way out, or ``None``: it can.

    Args:
        state: gives the stage.
        name, value: of the switch.
        arm: the other switches.
        found: see ``found_weights``.
    """
    switch = SWITCHES[name]
    if reason := idle(state, name, arm):
        return reason
    if switch.values and value not in switch.values:
        return f"{value!r} is not one of {', '.join(switch.values)}"
    if switch.values:
        return _not_trained(name, value, arm, found)
    if name == "prompt":
        return None if isinstance(value, str) and value.strip() else "the prompt is empty"
    whole = name not in ("guidance", "anchor_weight")
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return f"expected a {'whole ' if whole else ''}number, got {value!r}"
    if not switch.low <= value <= switch.high:
        return f"expected a number from {switch.low:g} to {switch.high:g}, got {value:g}"
    if name == "overlap" and value >= arm.chunk:
        return f"two chunks of {arm.chunk} frames cannot share {value}: every chunk has to add a frame"
    return None


def _not_trained(name: str, value: str, arm: Arm, found: frozenset[str]) -> str | None:
    if name == "conditioning" and value != "none" and value not in found:
        return "no trained weights shipped; st2v train NAME makes some"
    if name == "conditioning" and value != "cam" and arm.apm != "off":
        return "APM was trained beside CAM and beside nothing else: switch the long-term memory off first"
    if name == "apm" and value != "off" and "apm" not in found:
        return "no trained weights shipped; st2v train apm makes some"
    if name == "apm" and value != "off" and arm.conditioning != "cam":
        return f"APM was trained beside CAM, never beside {arm.conditioning!r}: there are no such weights"
    if name == "blend_law" and "enhancer" not in found:
        return "no trained enhancer shipped; st2v train enhancer makes one"
    return None


def no_scene(prompt: str) -> str | None:
    """Why no scene can be rendered for a prompt, or ``None``: it can."""
    from st2v_lib.world.captions import parse_prompt

    truth = parse_prompt(prompt)
    if len(truth.sprites) != 1 or None in (truth.motion, truth.background, truth.background_colour):
        return "the prompt has to name one sprite with colour and shape, its motion and a background of this world"
    if truth.sprites[0][0] == truth.background_colour:
        return "sprite and background of one colour do not exist in this world"
    return None


def problems(state: LabState, found: frozenset[str]) -> list[str]:
    """All that keeps a state from being run, one sentence each; an empty list: it can be run."""
    unknown = sorted(set(state.changes) - set(SWITCHES))
    if unknown:
        return [f"there is no switch {', '.join(unknown)}; there are {', '.join(SWITCHES)}"]
    if state.stage not in (2, 3):
        return [f"stage: expected 2 or 3, got {state.stage!r}"]
    out = [] if state.frames in FRAMES else [f"frames: expected one of {FRAMES}, got {state.frames!r}"]
    if state.first not in FIRST:
        out.append(f"first: expected one of {', '.join(FIRST)}, got {state.first!r}")
    elif state.first == "rendered" and (reason := no_scene(state.baseline.prompt)):
        out.append(f"first: {reason}; or let the first chunk be generated")
    for who, arm in state.arms.items():
        for name, switch in SWITCHES.items():
            changed = who == "ablated" and name in state.changes
            if changed or not idle(state, name, arm):
                if reason := why_not(state, name, getattr(arm, name), arm, found):
                    out.append(f"{who}, {switch.label}: {reason}")
    return out


def check(state: LabState, found: frozenset[str]) -> LabState:
    """The state, if it can be run.

    Raises:
        InputError: it cannot; every reason is named.
    """
    if found_problems := problems(state, found):
        raise InputError("; ".join(dict.fromkeys(found_problems)))
    return state


def notes(state: LabState) -> list[str]:
    """What a person should know of the prompts of a state that can be run: words that this world does not have."""
    from st2v_lib.world.captions import check_prompt

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for arm in state.arms.values():
            check_prompt(arm.prompt)
    return list(dict.fromkeys(str(warning.message) for warning in heard))


def snippet(state: LabState) -> str:
    """Python that runs this state again, and the config of the ablated arm for a pipeline."""
    arm = state.ablated
    if arm.conditioning not in ("cam", "none"):  # the lab alone looks for them
        return "\n".join([*_lines(state), f"result = run(state)  # its weights: arms/{arm.conditioning}"])
    config = [] if arm.apm in ("first", "grey") else ["apm=None" if arm.apm == "off" else 'anchor="last"']
    memory = arm.conditioning
    if arm.paste == "on":
        memory = "replacement" if memory == "none" else f"{memory}+replacement"
    config += [] if memory == "cam" else [f'conditioning="{memory}"']
    tail = [f"# the ablated memories in a pipeline: pipe.cfg = pipe.cfg.replace({', '.join(config)})"] if config else []
    return "\n".join([*_lines(state), "result = run(state)", *tail])


def _lines(state: LabState) -> list[str]:
    plain = Arm()
    arm = ", ".join(f"{n}={v!r}" for n, v in vars(state.baseline).items() if v != getattr(plain, n))
    rest = [f"{n}={getattr(state, n)!r}" for n in ("stage", "frames", "first")]
    return [
        "from st2v_lib.notebook.lab_run import run",
        "from st2v_lib.notebook.lab_state import Arm, LabState",
        f"state = LabState(Arm({arm}), {dict(sorted(state.changes.items()))!r}, {', '.join(rest)})",
    ]
