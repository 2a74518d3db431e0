"""A headless Chromium, driven over its own protocol; it takes ``websocket-client`` alone, which comes with Jupyter.

Just what a test of widgets needs: open a page, evaluate JavaScript, click like a mouse, type, take a screenshot.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


def find() -> str | None:
    """The browser: ``$ST2V_CHROMIUM``, or one of the usual names on the PATH."""
    named = os.environ.get("ST2V_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), MAC if Path(MAC).exists() else None)


def missing() -> str | None:
    """Why no browser can be driven here, or ``None``."""
    if find() is None:
        return f"no Chromium found: install one, or name it in ST2V_CHROMIUM (looked for {', '.join(NAMES)})"
    try:
        import websocket  # noqa: F401
    except ImportError:
        return "websocket-client is not installed; it comes with jupyter_server"
    return None


class Page:
    """One tab."""

    def __init__(self, address: str):
        import websocket

        self.socket, self.count = websocket.create_connection(address, timeout=60, suppress_origin=True), 0

    def call(self, method: str, **parameters: Any) -> dict:
        """A command of the protocol, and its result."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def js(self, code: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", result))
        return result["result"].get("value")

    def wait(self, code: str, seconds: float = 60, what: str = "") -> Any:
        """Waits until a JavaScript expression is true, and returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.js(f"(async () => {{ const v = await ({code}); return v instanceof Node || v; }})()"):
                return value
            time.sleep(0.2)
        raise AssertionError(f"not seen within {seconds:.0f} s: {what or code}")

    def click(self, element: str) -> None:
        """A mouse click on the middle of an element, given as a JavaScript expression."""
        box = self.js(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, element: str, text: str) -> None:
        """Replaces what stands in a field and leaves it with Enter."""
        self.js(f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}}); e.focus(); e.select(); }})()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
        self.js("document.activeElement.blur()")

    def screenshot(self, path: Path) -> Path:
        """What is seen, as png."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


@contextlib.contextmanager
def open_page(url: str, width: int = 1300, height: int = 1500) -> Iterator[Page]:
    """A page in a browser of its own, which ends with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        place = (f"--user-data-dir={profile}", "--remote-debugging-port=0", f"--window-size={width},{height}")
        browser = subprocess.Popen(
            [find(), *flags, *place, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            port = _port(Path(profile) / "DevToolsActivePort")
            ask = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?{url}", method="PUT")
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ask) as answer:
                page = Page(json.load(answer)["webSocketDebuggerUrl"])
            yield page
            page.socket.close()
        finally:
            browser.terminate()
            browser.wait(20)


def _port(file: Path, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if file.exists() and (lines := file.read_text().split()):
            return lines[0]
        time.sleep(0.1)
    raise RuntimeError("Chromium did not start")
