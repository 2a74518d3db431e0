"""Every checker answers a wrong kind of answer with its lesson, never with an error of its own."""

import importlib
from pathlib import Path

import pytest
import torch

from st2v_lib import notebook
from st2v_lib.notebook import checks
from st2v_lib.notebook.checks_08 import check_paired
from st2v_lib.notebook.checks_10 import check_rows

MODULES = sorted(path.stem for path in Path(notebook.__file__).parent.glob("checks*.py"))
CHECKERS = {
    name: check
    for module in MODULES
    for name, check in vars(importlib.import_module(f"st2v_lib.notebook.{module}")).items()
    if name.startswith("check_")
}
ANSWERS = {
    "number": 3, "text": "x", "list": [1], "tuple": (1, 2), "nothing": None, "tensor": torch.ones(2, 3),
    "nested": [[1, 2], [3]],
}  # fmt: skip


def test_all_checkers_were_found():
    assert len(CHECKERS) >= 24


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("name", CHECKERS)
def test_a_wrong_kind_of_answer_is_told_so(name, kind, capsys):
    checks.attempt(CHECKERS[name], lambda *arguments: ANSWERS[kind])
    assert capsys.readouterr().out.startswith(f"NOT YET {name.removeprefix('check_')}: ")


def test_the_lesson_names_what_was_asked_and_what_came():
    with pytest.raises(AssertionError, match=r"^expected fn\(rows\): the rows .*7 numbers; got 3 \(int\)"):
        check_rows(lambda rows: 3)


def test_an_error_in_the_reader_s_own_function_keeps_its_traceback():
    with pytest.raises(TypeError, match="NoneType"):
        check_rows(lambda rows: rows + None)


def test_a_list_will_do_where_two_things_are_asked_for(capsys):
    def paired(baseline, ablated):
        change = torch.tensor(ablated - baseline)
        change = change[~change.isnan()]
        few = len(change) < 2
        return [float("nan")] * 2 if few else [change.mean(), change.std() / len(change) ** 0.5]

    check_paired(paired)
    assert capsys.readouterr().out == "PASS paired\n"
