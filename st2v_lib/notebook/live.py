"""A video while it is made: a picture that is updated in place, and buttons that change what comes.

Core ipywidgets only, so it works in JupyterLab and in Colab. The generation is a task of the notebook's own event loop
and does one denoising step at a time; between two steps buttons are heard, and other cells run once they are called.

::

    view = LiveView(session)
    view.start()  # the cell returns at once, the picture goes on
    await view.task  # or wait for the end
"""

from __future__ import annotations

import asyncio
import html
import io
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from st2v_lib.errors import UserError
from st2v_lib.notebook import still
from st2v_lib.notebook.show import enlarge
from st2v_lib.sampling import StepState
from st2v_lib.session import Block, Session
from st2v_lib.video_io import to_uint8

if TYPE_CHECKING:
    from IPython.display import Image


class LiveView:
    """A session as a picture that plays the newest chunk, a line of numbers, and three controls.

    *Stop* ends after the denoising step in progress; *Go on* takes the session up again; *New prompt* holds from the
    next chunk on.

    Attributes:
        widget: what the notebook shows.
        task: the running generation, or ``None``.
        warnings: what the drift watch has said, by chunk.
    """

    def __init__(self, session: Session, zoom: int = 3, max_frames: int | None = None):
        """
        Args:
            session: what is made.
            zoom: pixels on the page for a pixel of the video.
            max_frames: stops once so many frames are in the video; ``None`` for the session's own length.
        """
        self.session, self.zoom, self.max_frames = session, zoom, max_frames
        self.task: asyncio.Task | None = None
        self.warnings: dict[int, tuple[str, ...]] = {}
        self.numbers: tuple[str, ...] = ()  # of the newest chunk
        self.frames = np.empty((0, 1, 1, 3), np.uint8)  # of the newest chunk
        self.picture = widgets.Image(format="gif", layout={"align_self": "flex-start", "display": "none"})
        self.status, self.steps = widgets.HTML(), widgets.IntProgress(min=0, max=1, description="chunk")
        self.toggle = widgets.Button(description="Go on", icon="play")
        self.prompt = widgets.Text(value=session.plan.prompt_at(session.frames_made), layout={"width": "28em"})
        self.send = widgets.Button(description="New prompt")
        self.toggle.on_click(lambda _: self.stop() if self.is_running else self.start())
        self.send.on_click(lambda _: self.change(self.prompt.value))
        controls = widgets.HBox([self.toggle, self.prompt, self.send])
        self.widget = widgets.VBox([self.picture, self.steps, self.status, controls])
        self._say()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widget; where there is no kernel (GitHub), a still picture of what it showed."""
        return still.bundle(self.widget, "live view", self._still())

    def still(self) -> Image:
        """The view as it is now, a picture that stays in the page: every other frame of the newest chunk."""
        from IPython.display import Image

        return Image(data=self._still(), format="png")

    def _still(self) -> bytes:
        controls = [self.toggle.description, f"> {self.prompt.value}", self.send.description]
        frames = [enlarge(frames[None], self.zoom)[0] for frames in self.frames[::2]]
        gap = [np.full_like(frame[:, :4], 255) for frame in frames]
        row = [part for pair in zip(frames, gap) for part in pair][:-1]
        lines = [html.unescape(line) for line in self.status.value.split("<br>")]
        return still.panel(np.concatenate(row, axis=1) if row else None, lines, controls)

    @property
    def is_running(self) -> bool:
        """Whether frames are being made."""
        return self.task is not None and not self.task.done()

    def start(self) -> LiveView:
        """Starts the generation in the running event loop, unless it runs; returns at once."""
        if not self.is_running:
            self.task = asyncio.get_running_loop().create_task(self._play())
        return self

    def stop(self) -> None:
        """Ends after the step in progress."""
        self.session.stop()

    def change(self, prompt: str) -> None:
        """Another prompt from the next chunk on; a wrong one is told in the view."""
        try:
            self._say(f"from frame {self.session.change(prompt)} on: {prompt}")
        except UserError as error:
            self._say(str(error))

    async def _play(self) -> None:
        self.toggle.description, self.toggle.icon = "Stop", "stop"
        try:
            await self.session.play(self._show)
        except UserError as error:
            self._say(str(error))
        finally:
            self.toggle.description, self.toggle.icon = "Go on", "play"

    def _show(self, event: StepState | Block) -> None:
        if isinstance(event, StepState):
            self.steps.max, self.steps.value = event.num_steps, event.index + 1
            return
        frames = event.video if event.video.shape[1] else event.low
        if frames.shape[1]:
            self.frames = to_uint8(frames[0])
            self.picture.value = gif(self.frames, self.session.cfg.fps, self.zoom)
            self.picture.layout.display = "block"  # hidden until there is something to see
        if event.warnings:
            self.warnings[event.index] = event.warnings
        self.numbers = tuple(f"{name} {value:.3g}" for name, value in event.look.items())
        self._say(*event.warnings)
        if self.max_frames is not None and self.session.frames_out >= self.max_frames:
            self.stop()

    def _say(self, *lines: str) -> None:
        first = " · ".join((f"{self.session.frames_out} frames in the video", *self.numbers))
        self.status.value = "<br>".join(html.escape(line) for line in (first, *lines))


def gif(frames: np.ndarray, fps: float, zoom: int) -> bytes:
    """Frames ``uint8 f h w c`` as an animated GIF that loops; quick rather than small."""
    from PIL import Image

    images = [Image.fromarray(frame).quantize(128) for frame in enlarge(frames, zoom)]
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return out.getvalue()
