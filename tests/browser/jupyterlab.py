"""A JupyterLab server of its own on one notebook, and the notebook open in a headless Chromium, all its cells run."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from st2v_lib.manifest import weights_dir

from . import chromium

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "outputs" / "browser"
TOKEN = "lab"
NEEDED = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing() or ""),
    pytest.mark.skipif(not (weights_dir("tiny") / "model_index.json").is_file(), reason="no trained tiny weights here"),
]
PICTURE = "document.querySelectorAll('img.widget-image')[0]"
DIGEST = f"""(async () => {{
  const image = {PICTURE};
  if (!image || !image.complete || !image.naturalWidth) return null;
  const bytes = await (await fetch(image.src)).arrayBuffer();
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return [image.naturalWidth, image.naturalHeight, Array.from(hash.slice(0, 8)).join('.')];
}})()"""


def button(text: str) -> str:
    """JavaScript for the panel's button with that text."""
    return f"[...document.querySelectorAll('.jupyter-widgets button')].find(b => b.innerText.trim() === '{text}')"


def says(text: str) -> str:
    """JavaScript: does any text of the panel contain this?"""
    return f"[...document.querySelectorAll('.widget-html')].some(e => e.innerText.includes({text!r}))"


@contextlib.contextmanager
def open_notebook(folder: Path, *cells: str) -> Iterator[chromium.Page]:
    """A notebook of these code cells in JupyterLab, run from top to bottom.

    Args:
        folder: empty; the notebook and all of Jupyter's settings lie here.
        *cells: their sources.
    """
    notebooks, home, port = folder / "notebooks", folder / "home", _free_port()
    notebooks.mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=[*map(new_code_cell, cells)], metadata=kernel), notebooks / "page.ipynb")
    places = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    env = {**os.environ, **places, "IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={notebooks}",
    ]  # fmt: skip
    overrides = home / "CONFIG" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text('{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}')
    with open(home / "log.txt", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=notebooks)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, home / "log.txt")
            with chromium.open_page(f"http://127.0.0.1:{port}/lab/tree/page.ipynb?token={TOKEN}") as page:
                _run_all(page)
                yield page
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _run_all(page: chromium.Page) -> None:
    page.wait("!!window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')", 120, "the notebook")
    page.wait("jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", 90, "the kernel")
    page.js("jupyterapp.commands.execute('application:toggle-left-area').catch(() => 0)")
    page.js("jupyterapp.commands.execute('notebook:run-all-cells')")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    end, opener = time.monotonic() + seconds, urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end and server.poll() is None:
        try:
            return opener.open(url).close()
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
