"""The ablation lab in real JupyterLab and a real, headless Chromium: a control changed, Run pressed, the video seen.

Skipped where there is no Chromium. Screenshots are left in ``outputs/browser`` to be looked at.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from st2v_lib.manifest import weights_dir

from . import chromium

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "outputs" / "browser"
TOKEN = "lab"
CODE = """\
from st2v_lib.notebook.lab_panel import LabPanel
from st2v_lib.notebook.lab_state import Arm, LabState
lab = LabPanel(LabState(Arm(steps=2), frames=24))
lab"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing() or ""),
    pytest.mark.skipif(not (weights_dir("tiny") / "model_index.json").is_file(), reason="no trained tiny weights here"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """JupyterLab on a folder with one notebook, its settings in a folder of their own; the notebook's address."""
    folder, home, port = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home"), free_port()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[new_code_cell(CODE)], metadata=kernel), folder / "lab.ipynb")
    places = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    env = {**os.environ, **places, "IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    overrides = home / "CONFIG" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text('{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}')
    log = open(home / "log.txt", "w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{base}/api?token={TOKEN}", server, home / "log.txt")
        yield f"{base}/lab/tree/lab.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    end, opener = time.monotonic() + seconds, urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end and server.poll() is None:
        try:
            return opener.open(url).close()
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def button(text: str) -> str:
    """JavaScript for the panel's button with that text."""
    return f"[...document.querySelectorAll('.jupyter-widgets button')].find(b => b.innerText.trim() === '{text}')"


def field(label: str) -> str:
    """JavaScript for the input in the row with that label."""
    rows = "[...document.querySelectorAll('.widget-hbox')]"
    return f"{rows}.find(r => r.children[0]?.innerText.trim() === '{label}').querySelector('input')"


def says(text: str) -> str:
    """JavaScript: does any text of the panel contain this?"""
    return f"[...document.querySelectorAll('.widget-html')].some(e => e.innerText.includes({text!r}))"


PICTURE = "document.querySelectorAll('img.widget-image')[0]"
DIGEST = f"""(async () => {{
  const image = {PICTURE};
  if (!image || !image.complete || !image.naturalWidth) return null;
  const bytes = await (await fetch(image.src)).arrayBuffer();
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return [image.naturalWidth, image.naturalHeight, Array.from(hash.slice(0, 8)).join('.')];
}})()"""


@pytest.fixture(scope="module")
def page(jupyter):
    with chromium.open_page(jupyter) as page:
        page.wait("!!window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')", 120, "the notebook")
        page.wait(
            "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", 90, "the kernel"
        )
        page.js("jupyterapp.commands.execute('application:toggle-left-area').catch(() => 0)")
        page.js("jupyterapp.commands.execute('notebook:run-all-cells')")
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
