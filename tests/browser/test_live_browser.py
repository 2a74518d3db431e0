"""Notebook 12's live view in real JupyterLab and Chromium: frames while they are made, and buttons heard meanwhile.

Skipped where there is no Chromium. Screenshots are left in ``outputs/browser`` to be looked at.
"""

import pytest

from .jupyterlab import DIGEST, NEEDED, PICTURE, SHOTS, button, open_notebook, says

pytestmark = NEEDED
SESSION = """\
import tempfile
import st2v_lib
from st2v_lib.notebook.live import LiveView
from st2v_lib.session import Session
pipe, prompt = st2v_lib.load("tiny", device="cpu"), "a red circle bounces over green stripes"
folder = tempfile.mkdtemp()
session = Session.create(folder, pipe, prompt, None, 0, enhance=False, num_inference_steps=4)"""
VIEW = """\
view = LiveView(session)
view"""
PROMPT = "document.querySelector('.jupyter-widgets input[type=text]')"
FRAMES = "parseInt(document.querySelector('.widget-html').innerText)"
OTHER = "a blue square bounces over yellow dots"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with open_notebook(tmp_path_factory.mktemp("live"), SESSION, VIEW) as page:
        page.wait(button("Go on"), 120, "the view")
        yield page


def frames(page) -> int:
    """Frames made, as the view says."""
    return page.js(FRAMES)


def run_cell(page, code: str) -> str:
    """What a new cell at the end prints: the page is free for other cells while frames come."""
    lab = "jupyterapp.shell.currentWidget.content"
    page.js(f"{lab}.activeCellIndex = {lab}.widgets.length - 1")
    page.js("jupyterapp.commands.execute('notebook:insert-cell-below')")
    page.js(f"{lab}.activeCell.model.sharedModel.setSource({code!r})")
    page.js("jupyterapp.commands.execute('notebook:run-cell')")
    return page.wait(
        f"{lab}.activeCell.model.outputs.toJSON().map(o => o.text || '').join('').trim()", 30, "the cell's output"
    )


def test_the_picture_is_replaced_while_frames_come(page):
    page.screenshot(SHOTS / "live_1_before.png")
    assert page.js(DIGEST) is None and page.js(f"{PICTURE}.offsetHeight") == 0, "there is nothing to see yet"
    page.click(button("Go on"))
    page.wait(button("Stop"), 30, "it runs")
    first = page.wait(DIGEST, 60, "the first chunk")
    assert first[:2] == [192, 192]
    assert page.js(f"[{PICTURE}.offsetWidth, {PICTURE}.offsetHeight]") == [192, 192], "as it is, not stretched"
    page.wait(f"{DIGEST}.then(d => d && d[2] !== '{first[2]}')", 60, "the next chunk, in place")
    assert page.js("document.querySelectorAll('img.widget-image').length") == 1
    assert page.js(says("contrast")), "the drift watch's numbers"
    page.screenshot(SHOTS / "live_2_running.png")


def test_another_cell_runs_meanwhile(page):
    assert run_cell(page, "print('running:', view.is_running)") == "running: True"


def test_the_prompt_is_changed_while_it_runs(page):
    page.type(PROMPT, "   ")
    page.click(button("New prompt"))
    page.wait(says("empty"), 30, "an empty prompt is told, and nothing stops")
    page.type(PROMPT, OTHER)
    page.click(button("New prompt"))
    page.wait(says(f"on: {OTHER}"), 30, "from which frame on it holds")
    page.screenshot(SHOTS / "live_3_new_prompt.png")
    made = frames(page)
    page.wait(f"{FRAMES} > {made + 24}", 90)


def test_stop_and_go_on(page):
    page.click(button("Stop"))
    page.wait(button("Go on"), 30, "it stops")
    made = frames(page)
    kept = "print(len(session.low_frames()[0]) == session.frames_made, session.plan.prompt_at(session.frames_made))"
    assert run_cell(page, kept) == f"True {OTHER}", "the session on disk has all the frames, and the new prompt"
    page.screenshot(SHOTS / "live_4_stopped.png")
    page.click(button("Go on"))
    page.wait(f"{FRAMES} > {made}", 60, "it goes on")
    page.click(button("Stop"))
    page.wait(button("Go on"), 30)
