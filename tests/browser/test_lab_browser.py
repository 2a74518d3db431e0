"""The ablation lab in real JupyterLab and a real, headless Chromium: a control changed, Run pressed, the video seen.

Skipped where there is no Chromium. Screenshots are left in ``outputs/browser`` to be looked at.
"""

import pytest

from .jupyterlab import DIGEST, NEEDED, PICTURE, SHOTS, button, open_notebook, says

pytestmark = NEEDED
CODE = """\
from st2v_lib.notebook.lab_panel import LabPanel
from st2v_lib.notebook.lab_state import Arm, LabState
lab = LabPanel(LabState(Arm(steps=2), frames=24))
lab"""


def field(label: str) -> str:
    """JavaScript for the input in the row with that label."""
    rows = "[...document.querySelectorAll('.widget-hbox')]"
    return f"{rows}.find(r => r.children[0]?.innerText.trim() === '{label}').querySelector('input')"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with open_notebook(tmp_path_factory.mktemp("lab"), CODE) as page:
        page.wait(button("Run"), 120, "the panel")
        yield page


def test_a_control_run_and_the_new_video(page):
    page.screenshot(SHOTS / "1_first_look.png")
    assert page.js(f"{button('add_cond')}.disabled") in (True, False)
    assert page.js(f"{button('B')}.disabled") is True, "a switch of stage 3 is greyed out in stage 2"
    page.type(field("steps"), "3")
    page.wait(says("press Run"), 20, "the panel heard of the control")
    page.click(button("Run"))
    page.wait(says("computed here"), 120, "the result")
    first = page.wait(DIGEST, 20, "the picture")
    assert first[0] > 700 and first[1] > 250
    page.js(f"{PICTURE}.scrollIntoView({{block: 'center'}})")
    page.screenshot(SHOTS / "2_after_run.png")

    page.click(button("cam"))  # a second change: the ablated arm has CAM, and no APM; the picture in place is replaced
    page.type(field("guidance"), "1")
    page.wait(f"!{button('Run')}.disabled && {says('another state')}", 30, "Run is offered again")
    page.click(button("Run"))
    page.wait(
        f"!{says('another state')} && {says('computed here')} && !{button('Run')}.disabled", 120, "the next result"
    )
    assert page.wait(DIGEST, 20) != first
    page.js("document.querySelector('.widget-play').scrollIntoView({block: 'center'})")


def test_the_players_play_and_scrub(page):
    before = page.wait(DIGEST)
    page.click("document.querySelector('.widget-play button')")
    page.wait(f"{DIGEST}.then(d => d && d[2] !== '{before[2]}')", 30, "another frame")
    page.click("document.querySelector('.widget-play button')")
    page.screenshot(SHOTS / "3_playing.png")


def test_stop_works_while_it_runs(page):
    page.type(field("steps"), "50")
    page.wait(f"{says('another state')} && !{button('Run')}.disabled", 30)
    page.click(button("Run"))
    page.wait(says("step 3 of 50"), 60, "it runs")
    page.click(button("Stop"))
    page.wait(says("stopped; what is shown is from before"), 15, "it stops")
    page.screenshot(SHOTS / "4_stopped.png")
    assert page.js(f"!{button('Run')}.disabled")


def test_recorded_results_are_shown_at_once(page):
    if not page.js(
        "[...document.querySelectorAll('.jupyter-widgets select option')].some(o => o.innerText === 'blending')"
    ):
        pytest.skip("no recorded results here")
    page.js(
        "(() => { const s = [...document.querySelectorAll('.jupyter-widgets select')].find("
        "s => [...s.options].some(o => o.innerText === 'blending'));"
        " s.value = [...s.options].find(o => o.innerText === 'blending').value;"
        " s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    page.wait(says("a recorded result"), 15, "the recorded result")
    page.js("document.querySelector('.widget-toggle-buttons').scrollIntoView({block: 'start'})")
    page.screenshot(SHOTS / "5_recorded.png")
