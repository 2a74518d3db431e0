"""Pytest settings for the notebooks: how nbval runs them, and what each one costs.

* A cell is run with history, so ``_``, ``Out`` and a trailing ``;`` work as they do in Jupyter (nbval passes
  ``store_history=False``, its issue 194).
* Videos, animations and stderr are never compared; figures are not either (nbval's own choice).
* After a cell that raised, the rest of that notebook is skipped: the first error is the one worth reading.
* Seconds and peak memory of each notebook's kernel go to ``build/notebook_costs.json``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

try:
    from nbval.kernel import RunningKernel
    from nbval.plugin import IPyNbCell, IPyNbFile
except ImportError:  # without nbval there are no notebook cells, and every isinstance below is false
    RunningKernel, IPyNbCell, IPyNbFile = None, (), ()

NOT_COMPARED = ("text/html", "image/gif", "image/svg+xml", "video/mp4", "stderr")
COSTS = pytest.StashKey[dict]()
BROKEN_AT = pytest.StashKey[str]()


def _execute_with_history(kernel, cell_input, allow_stdin=None):
    return kernel.kc.execute(cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


if RunningKernel is not None:
    RunningKernel.execute_cell_input = _execute_with_history  # an internal name: nbval is held at 0.11


def pytest_configure(config):
    config.stash[COSTS] = {}


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += NOT_COMPARED


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if isinstance(item, IPyNbCell) and BROKEN_AT in item.parent.stash:
        pytest.skip(f"{item.parent.stash[BROKEN_AT]} of this notebook failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Adds up the seconds of a notebook's cells, kernel start and stop included."""
    start = time.perf_counter()
    result = yield
    if isinstance(item, IPyNbCell):
        cost = _cost(item)
        cost["seconds"] = round(cost["seconds"] + time.perf_counter() - start, 1)
        cost["cells"] += 1
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if isinstance(item, IPyNbCell) and call.when == "call":
        cost = _cost(item)
        cost["peak_mb"] = max(cost["peak_mb"], _peak_mb(item.parent.kernel))
        cost["passed"] &= not report.failed
        if report.failed and "outputs" not in str(call.excinfo.value):  # a mere difference leaves the kernel usable
            item.parent.stash[BROKEN_AT] = item.name
    return report


def pytest_sessionfinish(session):
    costs = session.config.stash[COSTS]
    if not costs:
        return
    path = session.config.rootpath / "build" / "notebook_costs.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known | costs, indent=1, sort_keys=True) + "\n")


def _cost(item) -> dict:
    name = Path(item.path).relative_to(item.config.rootpath).as_posix()
    empty = {"seconds": 0.0, "peak_mb": 0, "cells": 0, "passed": True}
    return item.config.stash[COSTS].setdefault(name, empty)


def _peak_mb(kernel) -> int:
    """Peak memory of the kernel process so far: exact on Linux, elsewhere what it holds between two cells."""
    pid = getattr(getattr(getattr(kernel, "km", None), "provisioner", None), "pid", None)
    if not pid:
        return 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6)
    except OSError:
        pass
    try:
        return round(psutil.Process(pid).memory_info().rss / 1e6)
    except psutil.Error:
        return 0
