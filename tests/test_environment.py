"""The set-up files agree with each other, and notebooks run under nbval as the top-level conftest promises."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import st2v_lib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
PIN_LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
PINS = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in PIN_LINES}


def test_constraints_are_exact_sorted_and_platform_neutral():
    for line in PIN_LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), f"not an exact public version: {line}"
    assert len(PINS) == len(PIN_LINES), "a package is listed twice"
    assert sorted(PIN_LINES, key=str.lower) == PIN_LINES


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_direct_dependencies_are_pinned_within_their_bounds(requirement):
    pin = PINS.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is in pyproject.toml but not in constraints.txt"
    assert requirement.specifier.contains(pin), f"constraints.txt has {requirement.name} {pin}, outside {requirement}"


def test_everything_the_pinned_packages_bring_is_pinned():
    """Walks the metadata of installed packages; one installed in another version than pinned is not looked into."""
    todo, seen, missing = [(r.name, frozenset(r.extras)) for r in DIRECT], set(), {}
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if package.version.split("+")[0] != PINS[canonicalize_name(name)]:
            continue
        for requirement in map(Requirement, package.requires or []):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
                continue
            key = canonicalize_name(requirement.name)
            if key in PINS:
                todo.append((requirement.name, frozenset(requirement.extras)))
            elif name != "torch":  # a CUDA build of torch pins its own CUDA packages
                missing[key] = name
    assert not missing, f"in constraints.txt these are missing (package: brought by): {missing}"


def test_conda_environment_is_the_same_set_up():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"][0] == "conda-forge"
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    (python,) = [entry.split("=")[1] for entry in plain if entry.startswith("python=")]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert "pip" in plain, "conda warns when pip is used but not listed"
    assert pip == ["-c constraints.txt", "-e .[dev]"], "versions belong into pyproject.toml and constraints.txt"
    makefile = (ROOT / "Makefile").read_text()
    assert "-c constraints.txt" in makefile and "-e '.[dev]'" in makefile, "make setup and conda differ"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"])
def test_no_package_index_is_named(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"index-url|find-links|trusted-host|://", text)


def test_makefile_is_offline_after_set_up_and_needs_no_index():
    text = (ROOT / "Makefile").read_text()
    assert re.search(r"^PIP_ARGS \?=$", text, re.M)
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for target in ("test", "demo"):
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        commands = [line for line in shown.splitlines() if "-m pytest" in line or "st2v generate" in line]
        assert commands and all("HF_HUB_OFFLINE=1" in line and "TRANSFORMERS_OFFLINE=1" in line for line in commands)


def test_ci_calls_exactly_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert [line for line in script.read_text().splitlines() if "make" in line] == ["make test"]


def test_citation_names_paper_and_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    assert citation["version"] == st2v_lib.__version__
    assert [author["family-names"] for author in paper["authors"]] == [
        "Henschel", "Khachatryan", "Poghosyan", "Hayrapetyan", "Tadevosyan", "Wang", "Navasardyan", "Shi",
    ]  # fmt: skip
    assert paper["identifiers"][0]["value"] == "arXiv:2403.14773"


def _notebook(path: Path, cells: list[tuple[str, list[dict]]]) -> None:
    import nbformat.v4 as v4

    made = [v4.new_code_cell(source, outputs=outputs, execution_count=1) for source, outputs in cells]
    path.write_text(json.dumps(v4.new_notebook(cells=made)))


def test_notebooks_under_nbval(tmp_path):
    """History is kept, html is not compared, an exception skips the rest of its notebook only, costs are written."""
    pytest.importorskip("nbval")
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    page = {"output_type": "display_data", "data": {"text/html": "<b>old</b>"}, "metadata": {}}
    result = {"output_type": "execute_result", "data": {"text/plain": "42"}, "metadata": {}, "execution_count": 2}
    show = "# NBVAL_CHECK_OUTPUT\nfrom IPython.display import display\ndisplay({'text/html': '<b>new</b>'}, raw=True)"
    _notebook(
        tmp_path / "a_good.ipynb", [("42", []), ("# NBVAL_CHECK_OUTPUT\n_", [result]), ("_;", []), (show, [page])]
    )
    _notebook(tmp_path / "b_broken.ipynb", [("1 / 0", []), ("x = 1", []), ("x", [])])
    _notebook(tmp_path / "c_differs.ipynb", [("# NBVAL_CHECK_OUTPUT\n43", [result]), ("x = 1", [])])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-current-env",
        ".",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "2 failed, 5 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    costs = json.loads((tmp_path / "build" / "notebook_costs.json").read_text())
    assert {name: cost["passed"] for name, cost in costs.items()} == {
        "a_good.ipynb": True, "b_broken.ipynb": False, "c_differs.ipynb": False,
    }  # fmt: skip
    assert all(cost["seconds"] > 0 and cost["peak_mb"] > 10 for cost in costs.values())
    assert costs["a_good.ipynb"]["cells"] == 4
