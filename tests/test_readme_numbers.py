"""Numbers of the README are those of files. ``python tests/test_readme_numbers.py`` puts them in.

* Minutes and memory of the notebooks: the test run leaves ``build/notebook_costs.json``; what passed there is first
  taken over into ``data/results/notebook_costs.json``, with the machine.
* The state of the shipped weights, and the paper's claims beside what was measured here: ``data/results``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from st2v_lib.evaluation import paper  # noqa: E402
from st2v_lib.evaluation.overview import CLAIMS  # noqa: E402
from st2v_lib.evaluation.results import write_result  # noqa: E402
from st2v_lib.evaluation.tables import NOT_RUN, comparable, groups, judge, show  # noqa: E402
from st2v_lib.evaluation.training_seeds import signs  # noqa: E402
from st2v_lib.manifest import weights_mark  # noqa: E402
from st2v_lib.notebook import front, lab_record, repository  # noqa: E402

RESULTS = ROOT / "data" / "results"
COSTS = RESULTS / "notebook_costs.json"
ROW = re.compile(r"^(\| \[\d\d · [^]]+\]\((notebooks/[\w.]+)\) \|[^|\n]*\|)[^|\n]*\|[^|\n]*\|$", re.M)
UNMEASURED = " – | – |"


def take_over(build: Path, recorded: Path) -> None:
    """Adds what passed in the last test run to the recorded costs."""
    if not build.is_file():
        return
    try:
        known = json.loads(recorded.read_text())["notebooks"]
    except OSError:
        known = {}
    new = {name: cost for name, cost in json.loads(build.read_text()).items() if cost["passed"]}
    machine = f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"
    content = {"command": "make test", "machine": machine, "notebooks": known | new}
    recorded.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def with_costs(text: str, costs: dict[str, dict]) -> str:
    """The map of notebooks with minutes and GB as recorded."""

    def row(match: re.Match) -> str:
        cost = costs.get(match[2])
        return match[1] + (f" {cost['seconds'] / 60:.1f} | {cost['peak_mb'] / 1000:.1f} |" if cost else UNMEASURED)

    return ROW.sub(row, text)


def between(text: str, name: str, new: str) -> str:
    """The text with another paragraph between the two comments of that name."""
    parts = re.fullmatch(rf"(.*<!-- {name} -->\n).*(\n<!-- end of {name} -->.*)", text, re.DOTALL)
    assert parts, f"README.md has no place <!-- {name} --> … <!-- end of {name} -->"
    return parts[1] + new + parts[2]


def state(results: Path) -> str:
    """How well the shipped weights follow prompts and join chunks, one sentence."""
    found = json.loads((results / "floors_dev.json").read_text())
    first = {part: f"{100 * found['first_chunk'][part]['share']:.0f} %" for part in ("colour", "shape", "motion")}
    seam = {arm: f"{found[arm]['median_seam_px']:.1f}" for arm in ("streamed", "independent")}
    size = found["config"]["size"]
    return (
        f"On {found['n']} held-out prompts the first chunk has the right colour in {first['colour']}, the right shape "
        f"in {first['shape']} and\nthe right motion in {first['motion']}; the sprite jumps {seam['streamed']} px at a "
        f"chunk seam (median) with the memories, {seam['independent']} px without, of {size}\n"
        "([floors_dev.json](data/results/floors_dev.json))."
    )


def in_the_paper(claim: paper.Claim) -> str:
    """The paper's own two numbers for a claim, "a : b"; empty where it has none for this value."""
    column = {"mawe_code": 0, "scuts": 1, "clip_score": 2}.get(claim.value)
    if claim.value == "scuts" and {claim.a, claim.b} <= set(paper.SCUTS):
        return f"{paper.SCUTS[claim.a]:g} : {paper.SCUTS[claim.b]:g}"
    if claim.value == "flow_deviation":
        a, b = (paper.FLOW_DEVIATION[arm.split("@")[0]] for arm in (claim.a, claim.b))  # arm@level
        return f"{a:g} : {b:g}"
    if claim.a == "apm":
        return f"{paper.APM['with']} : {paper.APM['without']}"
    if column is None or claim.b not in paper.STANDS_FOR:
        return ""
    ours, theirs = (
        ", ".join(f"{paper.TABLE1[m][column]:g}" for m in paper.STANDS_FOR[arm]) for arm in (claim.a, claim.b)
    )
    return f"{ours} : {theirs}"


def beside_the_paper(results: Path, split: str = "test") -> str:
    """The paper's claims that were run here, one row each, and how many were not."""
    rows, missing, total = [], 0, 0
    for where, suite, claims in CLAIMS:
        found = comparable(groups(results, suite, split))
        for claim in claims:
            said = [(group, *judge(group, claim)) for group in found]
            said = [(group, verdict, difference) for group, verdict, difference in said if verdict != NOT_RUN]
            total, missing = total + 1, missing + (not said)
            for group, verdict, difference in said:
                same = signs(group, claim.a, claim.b, claim.value)
                n = f"{difference.n} videos" + (f", {same} training seeds" if same else "")
                title = f" · {group.title}" if len(said) > 1 else ""
                here = f"{show(difference, signed=True)} ({n})"
                who = ("ours" if claim.ours else where) + title
                rows.append(f"| {who} | {claim.text} | {in_the_paper(claim)} | {here} | {verdict} |")
    if not rows:
        return f"**None of the {total} claims has been run on the test split yet**, so there is no result to show."
    head = "| paper | claim | its numbers | here: difference, 95 % interval | says |\n|---|---|---|---|---|\n"
    tail = f"\n\n{missing} of {total} claims {'is' if missing == 1 else 'are'} not run yet." if missing else ""
    return head + "\n".join(rows) + tail


def renumber(text: str) -> str:
    """The README with the numbers of the files as they are now."""
    text = with_costs(text, json.loads(COSTS.read_text())["notebooks"])
    text = between(text, "state", state(RESULTS))
    return between(text, "results", beside_the_paper(RESULTS))


def test_numbers_are_those_of_the_files():
    text = (ROOT / "README.md").read_text()
    assert renumber(text) == text, "python tests/test_readme_numbers.py puts them in"


def test_every_notebook_is_on_the_map():
    listed = [match[2] for match in ROW.finditer((ROOT / "README.md").read_text())]
    assert listed == [f"notebooks/{p.name}" for p in repository.notebooks() if p.parent.name == "notebooks"]


def test_the_badge_is_that_of_the_first_notebook():
    badge = repository.badge("notebooks/00_start_here.ipynb")
    assert badge in (ROOT / "README.md").read_text(), "python -m st2v_lib.notebook.repository"


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"


def test_the_front_picture_moves_and_is_small():
    from PIL import Image

    path, text = ROOT / "data" / "front.webp", " ".join((ROOT / "README.md").read_text().split())
    assert path.stat().st_size <= front.MAX_BYTES and 'src="data/front.webp"' in text
    assert all(f'"{prompt}"' in text for prompt in front.PROMPTS), "the words under the picture name other prompts"
    with Image.open(path) as picture:
        assert picture.n_frames == front.FRAMES and picture.info["loop"] == 0
    assert not (why := front.stale(path.parent)), f"{why}; python -m st2v_lib.notebook.front makes it again"


def test_records_are_of_the_shipped_weights():
    """New weights make every record stale; each of these commands makes one again."""
    lab = {f"lab_run --precompute ({name})": r.weights for name, r in lab_record.recorded().items()}
    files = {"notebook.long_record": "long_record.json", "evaluation.floors": "floors_dev.json"}  # no stage 3 in them
    marks = {command: json.loads((RESULTS / file).read_text())["weights"] for command, file in files.items()}
    stale = [command for command, found in lab.items() if found != weights_mark()]
    assert not stale + [command for command, found in marks.items() if found != weights_mark(idle=("enhancer",))]


def test_a_mark_changes_with_what_was_at_work_alone(tmp_path):
    from st2v_lib.manifest import write_manifest

    for part in ("unet", "enhancer"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(part)
    write_manifest(tmp_path)
    marks = [weights_mark(tmp_path), weights_mark(tmp_path, idle=("enhancer",))]
    for part in ("enhancer", "unet"):
        (tmp_path / part / "config.json").write_text("another")
        write_manifest(tmp_path)
        marks += [weights_mark(tmp_path), weights_mark(tmp_path, idle=("enhancer",))]
    assert marks[0] != marks[2] != marks[4] and marks[1] == marks[3] != marks[5]


def test_costs_go_into_the_map(tmp_path):
    build, recorded = tmp_path / "build.json", tmp_path / "recorded.json"
    take_over(build, recorded)
    assert not recorded.exists()
    good = {"seconds": 90.0, "peak_mb": 1234, "cells": 3, "passed": True}
    build.write_text(json.dumps({"notebooks/00_a.ipynb": good, "notebooks/01_b.ipynb": good | {"passed": False}}))
    take_over(build, recorded)
    text = "| [00 · A](notebooks/00_a.ipynb) | why? | 7 | |\n| [01 · B](notebooks/01_b.ipynb) | how? | 7 | 3 |\n"
    done = with_costs(text, json.loads(recorded.read_text())["notebooks"])
    assert done.splitlines()[0] == "| [00 · A](notebooks/00_a.ipynb) | why? | 1.5 | 1.2 |"
    assert done.splitlines()[1] == "| [01 · B](notebooks/01_b.ipynb) | how? | – | – |"
    assert with_costs(done, {}) == text.replace("7 | |", "– | – |").replace("7 | 3 |", "– | – |")


def test_results_stand_beside_the_papers(tmp_path):
    """Two made-up result files, three training seeds of one of them."""
    assert "None of the 37 claims" in beside_the_paper(tmp_path)
    for arm, seed, scuts in (("cam", 0, 0), ("cam", 1, 0), ("cam", 2, 0), ("add_cond", 0, 1), ("add_cond", 1, 1)):
        training = {"arm": arm, "seed": seed, "clips": 9, "clips_asked": 9, "base_sha256": "b"}
        identity = {"suite": "cam", "arm": f"{arm}-{seed}", "split": "test", "seed": 0, "training": training}
        identity["options"] = {"frames": 80, "sprites": 1, "speed": "world"}
        videos = [{"index": i, "prompt": "p", "values": {"scuts": scuts + i / 100}} for i in range(20)]
        content = {"identity": identity, "made_with": [], "videos": videos}
        write_result(tmp_path / "cam" / f"{arm}-{seed}.json", content)
    text = beside_the_paper(tmp_path)
    row = next(line for line in text.splitlines() if "fewer cuts with CAM than with Add-Cond" in line)
    assert "| 0.03 : 0.284 | -1.00 [-1.00, -1.00] (20 videos, 2 of 2 training seeds) | agrees |" in row
    assert text.endswith("36 of 37 claims are not run yet.")


if __name__ == "__main__":
    take_over(ROOT / "build" / "notebook_costs.json", COSTS)
    readme = ROOT / "README.md"
    readme.write_text(renumber(readme.read_text()))
    sys.exit(0)
