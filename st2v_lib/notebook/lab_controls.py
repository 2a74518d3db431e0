"""The switches of the ablation lab as core ipywidgets; what is impossible is greyed out and says why."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from st2v_lib.notebook.lab_state import FIRST, FRAMES, SWITCHES, LabState, idle, no_scene, why_not

LABEL = {"flex": "0 0 140px"}
HEADS = {
    "training": "Decided in training: another choice needs other weights",
    "inference": "Decided at inference: the same weights, used otherwise",
}


class Choice:
    """A row of buttons of which one is chosen and some may be greyed out (a core dropdown greys all or none).

    Attributes:
        value: the chosen one.
        widget, buttons: what is shown.
    """

    def __init__(self, values: tuple[str, ...], on_choice: Callable[[str], None]):
        self.value = values[0]
        self.buttons = {value: widgets.Button(description=value, layout={"width": "auto"}) for value in values}
        for value, button in self.buttons.items():
            button.on_click(lambda _, value=value: on_choice(value))
        self.widget = widgets.HBox(list(self.buttons.values()), layout={"flex_flow": "row wrap"})

    def show(self, value: str, reasons: dict[str, str | None]) -> None:
        """Marks the chosen one and greys out those with a reason."""
        self.value = value
        for name, button in self.buttons.items():
            button.button_style = "info" if name == value else ""
            button.disabled, button.tooltip = bool(reasons.get(name)), reasons.get(name) or name


class Controls:
    """All switches of one arm at a time.

    Attributes:
        state: as last shown.
        editing: ``"ablated"`` or ``"baseline"``, the arm that the switches change.
        inputs: a widget or ``Choice`` by switch.
        why: the reasons of what is greyed out, by switch.
    """

    def __init__(self, on_change: Callable[[LabState], None]):
        """
        Args:
            on_change: called with the new state when a person has used a control.
        """
        self.on_change, self.state, self.found = on_change, LabState(), frozenset()
        self._showing = False
        self.stage = widgets.ToggleButtons(options={"2: memories": 2, "3: enhancer": 3}, description="stage")
        self.frames = widgets.Dropdown(options=FRAMES, description="frames", layout={"width": "160px"})
        self.first = widgets.Dropdown(options=FIRST, description="first chunk", layout={"width": "210px"})
        self.editing = widgets.ToggleButtons(options=("ablated", "baseline"), description="change the")
        self.inputs = {name: self._input(name) for name in SWITCHES}
        self.why = {name: widgets.HTML() for name in SWITCHES}
        for control, name in ((self.stage, "stage"), (self.frames, "frames"), (self.first, "first")):
            control.observe(lambda change, name=name: self._lab_field(name, change["new"]), "value")
        self.editing.observe(lambda _: self.show(self.state, self.found), "value")
        rows: list[Any] = [widgets.HBox([self.stage, self.frames, self.first]), self.editing]
        for when, head in HEADS.items():
            rows.append(widgets.HTML(f"<b>{head}</b>"))
            rows += [self._row(name) for name, switch in SWITCHES.items() if switch.when == when]
        self.widget = widgets.VBox(rows)

    def _input(self, name: str) -> Any:
        switch = SWITCHES[name]
        if switch.values:
            return Choice(switch.values, lambda value: self._switch(name, value))
        if name == "prompt":
            box = widgets.Text(continuous_update=False, layout={"width": "30em"})
        elif name in ("guidance", "anchor_weight"):
            box = widgets.BoundedFloatText(min=switch.low, max=switch.high, step=0.5, layout={"width": "90px"})
        else:
            box = widgets.BoundedIntText(min=int(switch.low), max=int(switch.high), layout={"width": "90px"})
        box.observe(lambda change: self._switch(name, change["new"]), "value")
        return box

    def _row(self, name: str) -> widgets.HBox:
        shown, switch = self.inputs[name], SWITCHES[name]
        label = widgets.HTML(f'<span title="{html.escape(switch.about)}">{switch.label}</span>', layout=LABEL)
        return widgets.HBox([label, getattr(shown, "widget", shown), self.why[name]])

    def show(self, state: LabState, found: frozenset[str]) -> None:
        """Makes all controls agree with a state."""
        self.state, self.found, self._showing = state, found, True
        try:
            self.stage.value, self.frames.value, self.first.value = state.stage, state.frames, state.first
            self.first.tooltip = no_scene(state.baseline.prompt) or "rendered: a true first chunk for both arms"
            arm = state.arms[self.editing.value]
            for name, switch in SWITCHES.items():
                self._show(name, arm, switch.values or (getattr(arm, name),))
        finally:
            self._showing = False

    def _show(self, name: str, arm: Any, values: tuple) -> None:
        control, value = self.inputs[name], getattr(arm, name)
        reasons = {v: why_not(self.state, name, v, arm, self.found) for v in values}
        if isinstance(control, Choice):
            control.show(value, reasons)
        else:
            control.value = value
            control.disabled = idle(self.state, name, arm) is not None
        groups: dict[str, list[str]] = {}
        for v, reason in reasons.items():
            if reason:
                groups.setdefault(reason, []).append(str(v))
        choice = isinstance(control, Choice) and not idle(self.state, name, arm)
        lines = [f"{', '.join(vs)}: {reason}" if choice else reason for reason, vs in groups.items()]
        self.why[name].value = f'<span style="color:#888;font-size:11px">{html.escape("; ".join(lines))}</span>'

    def _lab_field(self, name: str, value: Any) -> None:
        if not self._showing:
            self.on_change(self.state.set(**{name: value}))

    def _switch(self, name: str, value: Any) -> None:
        if self._showing:
            return
        if self.editing.value == "baseline":
            self.on_change(self.state.set(**{name: value}))
        else:
            self.on_change(dataclasses.replace(self.state, changes={**self.state.changes, name: value}))
