"""What the notebooks show and check: plain arrays, GIFs, checkers that teach, the shared first cell."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from st2v_lib import notebook
from st2v_lib.errors import InputError
from st2v_lib.metrics.mawe import mawe_of
from st2v_lib.notebook import checks, repository, setup, show


def video(frames: int = 12, h: int = 20, w: int = 24) -> np.ndarray:
    """A bar that moves over a flat ground, ``uint8 f h w c``."""
    out = np.full((frames, h, w, 3), 90, np.uint8)
    for t in range(frames):
        out[t, :, t : t + 4] = (250, 30, 30)
    return out


def as_float(frames: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


# ------------------------------------------------------------------------------------------------------- show


def test_all_layouts_are_the_same_video():
    v = video()
    for same in (v, v[None], as_float(v), as_float(v)[None], [v], {"": v}):
        (got,) = show.videos_of(same).values()
        np.testing.assert_array_equal(got, v)
    assert len(show.videos_of(torch.stack([as_float(v)] * 3))) == 3
    assert list(show.videos_of({"a": v, "b": as_float(v)})) == ["a", "b"]


@pytest.mark.parametrize("wrong", [[], np.zeros((3, 8, 8)), np.zeros((2, 2, 8, 8, 3), np.uint8)[None]])
def test_wrong_layouts_are_errors(wrong):
    with pytest.raises(InputError, match="expected"):
        show.side_by_side(wrong)


def test_side_by_side_zooms_to_the_nearest_pixel_and_holds_the_last_frame():
    v = video()
    row = show.side_by_side([v, v[:5]], zoom=3)
    assert row.shape == (12, 60, 2 * 72 + show.GAP, 3)
    np.testing.assert_array_equal(row[:, ::3, :72:3], v)
    np.testing.assert_array_equal(row[11, ::3, 72 + show.GAP :: 3], v[4])
    titled = show.side_by_side({"left": v, "right, with a title that is far too long": v}, zoom=3)
    assert titled.shape[1] > row.shape[1] and titled.shape[2] == row.shape[2]


def test_gif_keeps_frames_rate_and_colours():
    frames = show.side_by_side(video(), zoom=2)
    gif = Image.open(io.BytesIO(show.encode_gif(frames, fps=10)))
    assert gif.n_frames == 12 and gif.info["duration"] == 100 and gif.info["loop"] == 0
    for t in (0, 5, 11):
        gif.seek(t)
        np.testing.assert_allclose(np.asarray(gif.convert("RGB"), int), frames[t].astype(int), atol=2)


def test_gif_stays_under_its_limit_or_says_so():
    noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    many = len(show.encode_gif(noise))
    assert len(show.encode_gif(noise, limit=many - 1)) < many
    with pytest.raises(InputError, match="fewer frames"):
        show.encode_gif(noise, limit=2000)
    assert show.show_video(noise, limit=25_000).frames.shape[1] < 180  # a smaller zoom was found


def test_a_small_vivid_sprite_keeps_its_colour_when_there_are_few():
    rng = np.random.default_rng(0)
    grain = np.array([70, 150, 90]) + rng.normal(0, 25, (8, 64, 64, 1)) + rng.normal(0, 8, (8, 64, 64, 3))
    frames = grain.clip(0, 255).astype(np.uint8)
    frames[:, 20:26, 20:26] = 20, 40, 235
    gif = Image.open(io.BytesIO(show.encode_gif(frames, limit=28_000)))
    assert len(gif.convert("RGB").getcolors()) <= 32, "the limit asks for the smallest palette"
    assert np.abs(np.asarray(gif.convert("RGB"), int)[20:26, 20:26] - [20, 40, 235]).max() < 12


def test_gif_object_is_an_image_on_github():
    gif = notebook.show_video({"a & b": video()}, zoom=2)
    assert gif._repr_html_().startswith('<img src="data:image/gif;base64,') and "12 frames" in repr(gif)


def test_stills_are_png():
    pictures = (
        notebook.contact_sheet({"a": video(), "b": video()}, every=4),
        notebook.show_xt([video(), video()], seams=[4, 8]),
    )
    for picture in pictures:
        assert Image.open(io.BytesIO(picture.data)).format == "PNG"
    assert show.sheet(video(), every=4, columns=2).shape == (2 * 22 + show.GAP, 2 * 26, 3)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, ["a  0", "4", "8"]),
        ({"start": 12}, ["a  12", "16", "20"]),
        ({"start": 8, "step": 24}, ["a  8", "104", "200"]),
        ({"labels": ["x", "y", "z"], "title": "recorded"}, ["a  x", "y", "z"]),
    ],
)
def test_a_contact_sheet_names_its_pictures(options, expected, monkeypatch):
    figures = []
    monkeypatch.setattr(show, "show_figure", figures.append)
    show.contact_sheet({"a": video()}, every=4, **options)
    assert [axis.get_title(loc="left") for axis in figures[0].axes] == expected
    assert figures[0].get_suptitle() == options.get("title", "")


def test_a_contact_sheet_wants_a_label_for_each_picture():
    with pytest.raises(InputError, match="expected 3 labels"):
        show.contact_sheet(video(), every=4, labels=["x", "y"])


# ------------------------------------------------------------------------------------------------- checkers


def right_warp_error(second, warped, unfilled):
    return ((second - warped).square() * ~unfilled).sum() / (3 * (~unfilled).sum())


def right_mawe(errors, lengths, floor):
    kept = lengths >= floor
    return np.mean(errors[kept] / (9.5 * lengths[kept])) if kept.any() else float("nan")


RIGHT = {
    "xt_slice": lambda v, row: v[:, row],
    "warp_error": right_warp_error,
    "mawe": right_mawe,
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name, capsys):
    getattr(checks, f"check_{name}")(RIGHT[name])
    assert capsys.readouterr().out == f"PASS {name}\n"


WRONG = [
    ("xt_slice", lambda v, row: v[:, :, row], "shape"),
    ("warp_error", lambda a, b, u: (a - b).square().mean(), "all pixels"),
    ("warp_error", lambda a, b, u: ((a - b).square() * ~u).sum() / (~u).sum(), "3 channels"),
    ("mawe", lambda e, m, f: e[m >= f].sum() / m[m >= f].sum() / 9.5, "mean of the ratios"),
    ("mawe", lambda e, m, f: right_mawe(e, m, f) * 9.5, "factor 9.5"),
    ("mawe", lambda e, m, f: np.mean(e / (9.5 * m)), "left out before"),
    ("mawe", lambda e, m, f: np.nan_to_num(right_mawe(e, m, f)), "return nan"),
    ("mawe", lambda e, m, f: None, "return"),
]


@pytest.mark.parametrize("name, fn, lesson", WRONG)
def test_wrong_answers_are_taught(name, fn, lesson):
    with pytest.raises(AssertionError, match=lesson):
        getattr(checks, f"check_{name}")(fn)


def test_an_empty_exercise_prints_its_lesson(capsys):
    def empty(errors, lengths, floor):
        raise NotImplementedError

    checks.attempt(checks.check_mawe, empty)
    assert capsys.readouterr().out.startswith("NOT YET mawe: nothing here yet")
    checks.attempt(checks.check_mawe, right_mawe)
    assert capsys.readouterr().out == "PASS mawe\n"


def test_the_readers_function_gets_copies():
    v = video()
    checks.call(lambda x: x.fill(0) or 1, v)
    assert v.any()


def test_expect(capsys):
    checks.expect("a", 1.02, about=1, within=0.05)
    checks.expect("b", float("nan"), about=float("nan"))
    assert capsys.readouterr().out == "PASS a\nPASS b\n"
    with pytest.raises(AssertionError, match="expected 1 ± 0.05, got 1.2"):
        checks.expect("a", 1.2, about=1, within=0.05)
    assert mawe_of([], "code", {}).value != 0


# ------------------------------------------------------------------------------------ address and first cell


def test_badge_and_cell_name_the_same_release():
    badge = repository.badge("notebooks/06_metrics.ipynb")
    assert f"{repository.REPOSITORY}/blob/{repository.TAG}/notebooks/06_metrics.ipynb" in badge
    cell = repository.setup_cell()
    compile(cell, "first cell", "exec")
    assert repository.url() in cell and repository.TAG in cell and len(cell.splitlines()) <= 14


def test_rewrite_puts_both_in(tmp_path):
    path = tmp_path / "notebooks" / "01_a.ipynb"
    path.parent.mkdir()
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "[![Open in Colab](old)](older)\n", "text"], "metadata": {}},
        {"cell_type": "code", "source": ["1\n", "2"], "metadata": {}, "outputs": [], "execution_count": None},
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert repository.rewrite(path, tmp_path) and not repository.rewrite(path, tmp_path)
    new = json.loads(path.read_text())["cells"]
    assert repository.badge("notebooks/01_a.ipynb") in "".join(new[0]["source"]) and new[0]["source"][2] == "text"
    assert "".join(new[1]["source"]) == repository.setup_cell()
    path.write_text(json.dumps({"cells": cells[1:], "metadata": {}}))
    with pytest.raises(ValueError, match="no Colab badge"):
        repository.rewrite(path, tmp_path)


def test_requirements_leave_torch_and_numpy_alone(monkeypatch):
    names = setup.requirements()
    assert {"torch", "numpy", "mediapy"} <= set(names)
    lacks = ("torch", "numpy", "mediapy", "jupyterlab")
    monkeypatch.setattr(setup, "version", lambda name: None if name in lacks else "999")
    assert setup.missing() == [names["mediapy"]]
    with pytest.raises(RuntimeError, match="torch and numpy must be there"):
        setup.install_missing()


def test_nothing_is_installed_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(setup, "version", lambda name: "999")
    monkeypatch.setattr(setup.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    assert setup.install_missing() == []


def test_old_packages_are_renewed_unless_held_or_in_use(monkeypatch, capsys):
    """As in Colab: numpy, the widgets and what the kernel has imported stay; an old diffusers does not."""
    have = {"numpy": "2.0.2", "ipywidgets": "7.7.1", "psutil": "5.9.5", "diffusers": "0.36.9", "torch": "2.9.0+cu126"}
    monkeypatch.setattr(setup, "version", lambda name: have.get(name, "999"))
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    assert set(setup.too_old()) == {"numpy", "ipywidgets", "psutil", "diffusers"}
    seen = {}

    def pip(command, **options):
        seen.update(wanted=command[7:], held=Path(command[6]).read_text().split())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(setup.subprocess, "run", pip)
    assert setup.install_missing() == seen["wanted"] == [setup.requirements()["diffusers"]]
    assert {"torch==2.9.0+cu126", "numpy==2.0.2", "ipywidgets==7.7.1"} <= set(seen["held"])
    assert "left: numpy 2.0.2, ipywidgets 7.7.1, psutil 5.9.5" in capsys.readouterr().out


def test_environment_prints_five_lines(capsys):
    notebook.environment()
    out = capsys.readouterr().out
    assert 4 <= len(out.splitlines()) <= 6 and "torch" in out and "tiny" in out and "modelscope" in out


def test_names_are_lazy_and_complete():
    for name in notebook.__all__:
        assert getattr(notebook, name) is not None
