"""Drawings as HTML for a notebook, and the checkers of notebook 07."""

from __future__ import annotations

import io
from math import comb, isnan, nan

import numpy as np
import pytest
from PIL import Image

from st2v_lib.evaluation.reproduce import DRAW
from st2v_lib.notebook import checks
from st2v_lib.notebook.ballot import sign_test
from st2v_lib.notebook.checks_07 import check_difference, check_sign_test
from st2v_lib.notebook.drawn import drawn, shown, small_png

TEXT = """## a & b

### first

| arm | value ↓ |
|-----|---------|
| B+S | 1 [0, 2] |

* fewer: **agrees**
* more: **tie**
A line of `code < 1`.
![a figure](x.png)
"""


def png(size=(60, 40)) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


def test_the_dialect_of_the_drawings_becomes_html():
    asked = []
    page = shown(TEXT, lambda name: asked.append(name) or b"bytes")._repr_html_()
    assert "<h4>a &amp; b</h4>" in page and "<h5>first</h5>" in page
    assert page.count("<tr>") == 2 and page.count("<th>") == 2 and "---" not in page
    assert "<ul><li>fewer: <b>agrees</b></li><li>more: <b>tie</b></li></ul>" in page
    assert "<p>A line of <code>code &lt; 1</code>.</p>" in page
    assert asked == ["x.png"] and 'src="data:image/png;base64,' in page
    assert shown(TEXT).text == TEXT and repr(shown(TEXT)).startswith("## a & b (")


def test_pictures_fit():
    data = png((400, 300))
    for limit in (60_000, 20_000):
        small = small_png(data, limit)
        assert len(small) <= limit and Image.open(io.BytesIO(small)).size[0] <= 400
    assert Image.open(io.BytesIO(small_png(png()))).size == (60, 40)


def test_every_drawing_is_shown_with_and_without_results(tmp_path):
    for what in DRAW:
        found = drawn(what, tmp_path / "nothing")
        assert found.text.startswith(f"## {what}") and "<h4>" in found.page and len(found.page) < 90_000
        assert what == "table12" or "not run" in found.page
    with pytest.raises(KeyError, match="table-cam"):
        drawn("fig99", tmp_path)


def right(a, b):
    both = [a[i] - b[i] for i in a if i in b and not isnan(a[i] + b[i])]
    return sum(both) / len(both), len(both)


def mean(values):
    kept = [v for v in values if not isnan(v)]
    return sum(kept) / len(kept)


def by_place(a, b):
    return mean(x - y for x, y in zip(a.values(), b.values())), right(a, b)[1]


def lower_tail(wins, losses):
    return sum(comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)


def test_right_answers_pass(capsys):
    check_difference(right)
    check_sign_test(sign_test)
    assert capsys.readouterr().out == "PASS difference\nPASS sign_test\n"


@pytest.mark.parametrize(
    "check, wrong, lesson",
    [
        (check_difference, lambda a, b: (-right(a, b)[0], right(a, b)[1]), "turned round"),
        (check_difference, lambda a, b: (mean(a.values()) - mean(b.values()), right(a, b)[1]), "that both have"),
        (check_difference, by_place, "pair by"),
        (check_difference, lambda a, b: (sum(a[i] - b[i] for i in a) / len(a), len(a)), "in one of the two only"),
        (check_difference, lambda a, b: (nan, 2), "takes its video out"),
        (check_difference, lambda a, b: 1.0, "two numbers"),
        (check_sign_test, lambda w, n: sign_test(w, n) / 2 if w != n else 1.0, "one-sided"),
        (check_sign_test, lambda w, n: 2 * lower_tail(w, n), "at most 1"),
        (check_sign_test, lambda w, n: comb(w + n, w) / 2 ** (w + n) if w + n > 1 else 1.0, "exactly this split"),
    ],
)  # fmt: skip
def test_wrong_answers_teach(check, wrong, lesson):
    with pytest.raises(AssertionError, match=lesson):
        check(wrong)


def test_an_empty_exercise_is_told(capsys):
    def empty(*arguments):
        raise NotImplementedError

    for check in (check_difference, check_sign_test):
        checks.attempt(check, empty)
    assert capsys.readouterr().out.count("nothing here yet") == 2
