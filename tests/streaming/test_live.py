"""The live view: one widget updated in place, buttons that are heard between two denoising steps."""

from __future__ import annotations

import asyncio
import io

import pytest
from PIL import Image

from st2v_lib.notebook.live import LiveView
from st2v_lib.session import Session

from .conftest import FRAMES, SEED, contents
from .micro import OTHER, PROMPT


@pytest.fixture
def session(pipe, tmp_path):
    return Session.create(tmp_path / "s", pipe, PROMPT, FRAMES, SEED)


def test_the_picture_is_updated_in_place(session, whole):
    pictures, view = [], LiveView(session, zoom=2)
    view.picture.observe(lambda change: pictures.append(change["new"]), "value")

    async def main():
        await view.start().task

    asyncio.run(main())
    assert len(pictures) == len(whole[1])
    shown = Image.open(io.BytesIO(pictures[-1]))
    assert shown.format == "GIF" and shown.size == (64, 64) and shown.n_frames == whole[1][-1].video.shape[1]
    assert f"{FRAMES} frames in the video" in view.status.value and "motion" in view.status.value
    assert view.steps.value == view.steps.max == 2
    assert contents(session.folder) == whole[2]


def test_a_still_stands_where_there_is_no_kernel(session):
    """Before the first frame it is the controls alone; then the newest chunk stands above them."""
    view = LiveView(session, zoom=2, max_frames=24)
    before = view._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "text/plain", "image/png"} == set(before)

    async def main():
        await view.start().task

    asyncio.run(main())
    controls, shown = (Image.open(io.BytesIO(png)) for png in (before["image/png"], view.still().data))
    assert shown.height > controls.height + 60, "the frames are 64 pixels high, two of them for each of the video"
    assert view._repr_mimebundle_()["image/png"] == view.still().data != before["image/png"]


def test_buttons_while_it_runs(session):
    """Stop, then go on, then another prompt, each clicked as a reader would, between two ticks."""
    view = LiveView(session)

    async def main():
        view.toggle.click()
        while session.frames_made < 24:
            await asyncio.sleep(0)
        assert view.toggle.description == "Stop" and view.is_running
        view.toggle.click()
        await view.task
        assert view.toggle.description == "Go on" and not session.is_done
        made = session.frames_made
        view.prompt.value = OTHER
        view.send.click()
        assert f"from frame {made} on" in view.status.value
        view.prompt.value = "  "
        view.send.click()
        assert "empty" in view.status.value
        view.toggle.click()
        await view.task

    asyncio.run(main())
    assert session.is_done
    assert [record["prompt"] for record in session.records] == [PROMPT] * 2 + [OTHER] * 3


def test_it_stops_by_itself_and_starts_once(session):
    view = LiveView(session, max_frames=8)

    async def main():
        task = view.start().task
        assert view.start().task is task
        await task

    asyncio.run(main())
    assert 8 <= session.frames_out < FRAMES


def test_an_error_is_shown(session, pipe):
    view, kept = LiveView(session), pipe.cfg

    async def main():
        await view.start().task

    try:
        pipe.cfg = kept.replace(apm=None)
        asyncio.run(main())
    finally:
        pipe.cfg = kept
    assert "another config" in view.status.value
