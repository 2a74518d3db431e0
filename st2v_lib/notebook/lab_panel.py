"""The ablation lab as a panel: switches, Run and Stop, players, slices, curves, differences, a snippet.

Core ipywidgets only, so it works in JupyterLab and in Colab. Switches change ``panel.state``; *Run* hands that to
``lab_run.run_steps`` as a task of the notebook's own event loop, one denoising step at a time, so that *Stop* and the
scrubber are heard while it runs. Everything shown is the value of a widget; nothing is printed.

::

    lab = LabPanel()
    lab  # the last line of a cell shows it
    lab.ablate(guidance=1.0)  # as if the controls had been used
    await lab.start().finish()  # as if Run had been pressed, and wait
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import time
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets as widgets

from st2v_lib.manifest import weights_mark
from st2v_lib.notebook import lab_views as views
from st2v_lib.notebook.lab_controls import Controls
from st2v_lib.notebook.lab_record import LabResult, recorded
from st2v_lib.notebook.lab_run import Bench, Tick, load_bench, run_steps, work
from st2v_lib.notebook.lab_state import LabState, found_weights, notes, problems, snippet
from st2v_lib.notebook.still import bundle

SECONDS = 0.25  # for a denoising step of one arm, until a run has told better
PATIENCE = 15  # seconds after which an answer is late
BREATH = 0.01  # seconds between two steps in which buttons are heard


class LabPanel:
    """The panel.

    Attributes:
        state: what the switches say.
        result: what is shown, or ``None``.
        task: the running job, or ``None``; error: why the last one failed.
        widget: what the notebook shows.
    """

    def __init__(self, state: LabState | None = None, bench: Bench | None = None, records: dict | None = None):
        """
        Args:
            state: to begin with.
            bench: the networks; by default they are loaded at the first run.
            records: results for an instant first look, by name; by default those in ``data/results/lab``.
        """
        self.state, self.bench = (state or LabState()).tidy(), bench
        self.found = found_weights() if bench is None else bench.found
        self.records = recorded() if records is None else records
        self.known: dict[str, LabResult] = {r.state.key(): r for r in self.records.values()}
        self.result: LabResult | None = None
        self.task: asyncio.Task | None = None
        self.error: Exception | None = None
        self.seconds, self._frames, self._stopping = SECONDS, [], False
        self.controls = Controls(self._changed)
        self._build()
        self.refresh()

    def _build(self) -> None:
        self.examples = widgets.Dropdown(
            options=["", *self.records], description="first look", tooltip="recorded results: shown at once"
        )
        self.run_button = widgets.Button(description="Run", icon="play", button_style="success")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(min=0, max=1, layout={"width": "200px"})
        self.status, self.caption, self.code, self.table = (widgets.HTML() for _ in range(4))
        self.picture, self.slices, self.curves = (widgets.Image(format="png") for _ in range(3))
        for image in (self.picture, self.slices, self.curves):
            image.layout.align_self, image.layout.max_width, image.layout.display = "flex-start", "100%", "none"
        self.play = widgets.Play(min=0, max=1, interval=125)
        self.play.repeat = True  # not an argument in ipywidgets 7, which Colab has
        self.frame = widgets.IntSlider(min=0, max=1, description="frame", layout={"width": "420px"})
        self.row = widgets.FloatSlider(
            0.5, min=0, max=1, step=0.05, description="slice at", continuous_update=False, layout={"width": "280px"}
        )
        widgets.jslink((self.play, "value"), (self.frame, "value"))
        self.run_button.on_click(lambda _: self._guarded(self.start))
        self.stop_button.on_click(lambda _: self.stop())
        self.examples.observe(lambda change: self._example(change["new"]), "value")
        self.frame.observe(lambda _: self._show_frame(), "value")
        self.row.observe(lambda _: self._show_slices(), "value")
        buttons = widgets.HBox([self.run_button, self.stop_button, self.progress, self.examples])
        scrubber = widgets.HBox([self.play, self.frame, self.row])
        self.widget = widgets.VBox(
            [
                self.controls.widget, buttons, self.status, self.caption, scrubber, self.picture, self.slices,
                self.curves, self.table, self.code,
            ]
        )  # fmt: skip

    def _repr_mimebundle_(self, **_: Any) -> dict:
        """The widget; where there is no kernel (GitHub), a still picture of what it showed."""
        shown = None if self.result is None else views.still(self.result, self.frame.value, self.row.value)
        return bundle(self.widget, "ablation lab", shown)

    # ------------------------------------------------------------------------------------------------- what users call

    def set(self, **new: Any) -> LabPanel:
        """Changes switches of the baseline, or ``stage``, ``frames``, ``first``, as ``LabState.set`` does."""
        return self._to(self.state.set(**new))

    def ablate(self, **changes: Any) -> LabPanel:
        """Lets the ablated arm change just this."""
        return self._to(self.state.ablate(**changes))

    @property
    def is_running(self) -> bool:
        """Whether a job is at work."""
        return self.task is not None and not self.task.done()

    def start(self) -> LabPanel:
        """Starts a run of the present state in the running event loop, unless one is at work; returns at once."""
        if not self.is_running:
            self.error, self._stopping = None, False
            self.task = asyncio.get_running_loop().create_task(self._work(self.state))
        return self

    def stop(self) -> None:
        """Ends the run after the step in progress; what was shown stays."""
        self._stopping = True

    async def finish(self) -> LabResult | None:
        """Waits for the run; its result, or ``None`` if it was stopped. Raises what it raised."""
        if self.task is not None:
            await self.task
        if self.error is not None:
            raise self.error
        return None if self._stopping else self.result

    def show(self, result: LabResult) -> None:
        """Shows a result, the first one from just after a seam on."""
        seam = 0 if self.result is not None else min(seams[0] if seams else 0 for seams in result.seams.values()) + 2
        self.result, self._frames = result, views.players(result)
        self.known[result.state.key()] = result
        self.frame.max = self.play.max = len(self._frames) - 1
        self.frame.value = seam or self.frame.value
        for image in (self.picture, self.slices, self.curves):
            image.layout.display = "block"
        self.curves.value, self.table.value = views.curves(result), views.table(result)
        self._show_frame()
        self._say_caption()

    def refresh(self) -> None:
        """Makes the controls and texts agree with the state; shows its result if it is known. Raises errors."""
        self.controls.show(self.state, self.found)
        wrong, (ticks, cost) = problems(self.state, self.found), (1, 0.0)
        if not wrong:
            ticks, cost = work(self.state)
        self.run_button.disabled = bool(wrong) or self.is_running
        self.code.value = (
            f"<details><summary>this state as code</summary><pre>{html.escape(snippet(self.state))}</pre></details>"
        )
        known = self.known.get(self.state.key())
        if known is not None and known is not self.result:
            self.show(known)
        if not self.is_running:
            self._say(*([f"cannot be run: {line}" for line in dict.fromkeys(wrong)] or self._about(ticks, cost)))
        self._say_caption()

    # ------------------------------------------------------------------------------------------------------- the parts

    def _about(self, ticks: int, cost: float) -> list[str]:
        seconds = max(1, round(cost * self.seconds))
        long = "; fewer frames or steps answer sooner" if seconds > PATIENCE else ""
        return [f"{ticks} steps, about {seconds} s here{long}", *notes(self.state)]

    def _to(self, state: LabState) -> LabPanel:
        self.state = state.tidy()
        if not self.is_running:
            self.progress.value = 0
        self.refresh()
        return self

    def _changed(self, state: LabState) -> None:
        self._to(state)

    def _example(self, name: str) -> None:
        if name:
            self._to(self.records[name].state)

    def _guarded(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # a button's errors are swallowed otherwise
            self._say(f"{type(error).__name__}: {error}")

    async def _work(self, state: LabState) -> None:
        self.run_button.disabled, self.stop_button.disabled = True, False
        try:
            if self.bench is None:
                self._say("loading the networks …")
                await asyncio.sleep(BREATH)
                self.bench = load_bench()
            began, steps = time.perf_counter(), run_steps(state, self.bench)
            with contextlib.closing(steps):
                result = await self._drive(steps)
            if result is not None:
                self.seconds = (time.perf_counter() - began) / work(state)[1]
                self.show(result)
        except Exception as error:  # told in the panel, and raised by finish
            self.error = error
        finally:
            self.task, self.stop_button.disabled = None, True
            self.refresh()
            if self.error is not None:
                self._say(f"{type(self.error).__name__}: {self.error}")
            elif self._stopping:
                self._say("stopped; what is shown is from before")

    async def _drive(self, steps: Iterable[Tick]) -> LabResult | None:
        while not self._stopping:
            try:
                tick = next(steps)
            except StopIteration as end:
                return end.value
            self.progress.max, self.progress.value = tick.total, tick.done
            self._say(tick.text)
            await asyncio.sleep(BREATH)
        return None

    def _show_frame(self) -> None:
        if self._frames:
            self.picture.value = self._frames[min(self.frame.value, len(self._frames) - 1)]
            self._show_slices()

    def _show_slices(self) -> None:
        if self.result is not None:
            self.slices.value = views.slices(self.result, self.row.value, min(self.frame.value, len(self._frames) - 1))

    def _say(self, *lines: str) -> None:
        self.status.value = "<br>".join(html.escape(line) for line in lines)

    def _say_caption(self) -> None:
        lines = [f"<b>the ablated arm changes</b> {views.changes(self.state)}"]
        if self.result is None:
            lines.append("nothing has been run yet: press <b>Run</b>")
        elif self.result.state.key() != self.state.key():
            lines.append("<b>shown below is another state</b>: press <b>Run</b> to see this one")
        elif self.result.recorded:
            same = self.result.weights == weights_mark()
            lines.append(
                "a recorded result" + ("" if same else ", <b>of other weights</b>: press Run for the present ones")
            )
        else:
            lines.append(f"computed here in {self.result.seconds:.1f} s")
        self.caption.value = "<br>".join(lines)
