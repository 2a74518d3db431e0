"""A blind pairwise vote, as in the paper's user study (§7): which of two videos is better, and is it more than chance?

State, functions, panel: a ``Ballot`` and what is done with it are in ``ballot``, this file shows it. The panel needs no
keyboard; every click is saved, so a closed notebook loses nothing. Core ipywidgets only.

::

    pairs = [Pair(prompt, video_of_first_arm, video_of_second_arm), ...]
    VotePanel(pairs, ("with memory", "without"), seed=0, path="votes.json")
    print(report(read_ballots(["votes.json"])))
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st2v_lib.errors import OutputError, UserError
from st2v_lib.notebook import still
from st2v_lib.notebook.ballot import QUESTIONS, cast, new_ballot, read_ballots, report, save, undo

if TYPE_CHECKING:
    from st2v_lib.notebook.show import Gif


@dataclass(frozen=True)
class Pair:
    """One prompt's videos, the first arm's and the second's (any layout that ``show_video`` takes)."""

    prompt: str
    first: object
    second: object


class VotePanel:
    """Two videos, a question, three buttons and *Undo*; says nothing of the arms before the end.

    Attributes:
        ballot: the answers so far.
        widget: what the notebook shows.
    """

    def __init__(self, pairs: Sequence[Pair], arms: Sequence[str], seed: int, path: str | Path, fps: float = 8):
        """
        Args:
            pairs: what is compared.
            arms: names of the first and the second video's arms.
            seed: of the order and the sides; every voter takes another.
            path: of the votes; goes on from what is there.

        Raises:
            UserError: when the file is about other videos.
        """
        import ipywidgets as widgets

        self.pairs, self.path, self.fps = tuple(pairs), Path(path), fps
        self.ballot = new_ballot(arms, [p.prompt for p in pairs], seed)
        for found in read_ballots([path]):
            if dataclasses.replace(found, votes=()) != self.ballot:
                raise UserError(f"{self.path.name} holds votes on other videos or with another seed; take another name")
            self.ballot = found
        self.text, self.picture = widgets.HTML(), widgets.Image(format="gif")
        labels = {"left": "left", "same": "no difference", "right": "right"}
        self.buttons = {choice: widgets.Button(description=label) for choice, label in labels.items()}
        self.back = widgets.Button(description="Undo")
        for choice, button in self.buttons.items():
            button.on_click(lambda _, choice=choice: self._go(cast, choice))
        self.back.on_click(lambda _: self._go(undo))
        row = widgets.HBox([*self.buttons.values(), self.back])
        self.widget = widgets.VBox([self.picture, self.text, row])
        self._shown, self._frames = None, np.empty((0, 1, 1, 3), np.uint8)
        self._show()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widget; where there is no kernel (GitHub), a still picture of it: the pair at three moments."""
        return still.bundle(self.widget, "blind vote", self._still())

    def _still(self) -> bytes:
        lines = html.unescape(re.sub("<[^>]*>", "", self.text.value)).splitlines()
        labels = [button.description for button in (*self.buttons.values(), self.back)]
        frames = self._frames[:: max(1, (len(self._frames) - 1) // 2)][:3]
        gap = [np.full_like(frame[:, :16], 255) for frame in frames]
        row = [part for pair in zip(frames, gap) for part in pair][:-1]
        return still.panel(np.concatenate(row, axis=1) if row else None, lines, labels)

    def _go(self, step, *arguments) -> None:
        after = step(self.ballot, *arguments)
        try:
            save(after, self.path)
        except OutputError as error:  # the answer is not taken: what is seen is what is saved
            self.text.value = html.escape(str(error))
            return
        self.ballot = after
        self._show()

    def _show(self) -> None:
        for button in self.buttons.values():
            button.disabled = self.ballot.is_done
        self.back.disabled = not self.ballot.votes
        if self.ballot.is_done:
            self.text.value = f"<pre>{html.escape(report([self.ballot]))}</pre>"
            return
        place, question = self.ballot.place
        self.text.value = (
            f"<b>{html.escape(QUESTIONS[question])}</b> “{html.escape(self.pairs[self.ballot.order[place]].prompt)}” "
            f"(pair {place + 1} of {len(self.pairs)})"
        )
        if self._shown != place:
            shown = self._gif(place)
            self.picture.value, self._frames, self._shown = shown.data, shown.frames, place

    def _gif(self, place: int) -> Gif:
        from st2v_lib.notebook.show import show_video

        pair = self.pairs[self.ballot.order[place]]
        sides = (pair.second, pair.first) if self.ballot.swapped[place] else (pair.first, pair.second)
        return show_video({"left": sides[0], "right": sides[1]}, fps=self.fps)
