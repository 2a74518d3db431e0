"""Micro weights, and what an uninterrupted session of them looks like on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from .micro import PROMPT, write_micro

FRAMES, SEED = 44, 3


@pytest.fixture(scope="session")
def micro_data(tmp_path_factory):
    return write_micro(tmp_path_factory.mktemp("micro") / "data")


@pytest.fixture(scope="session")
def pipe(micro_data):
    from st2v_lib.loading import load

    return load("tiny", "cpu", micro_data / "weights" / "tiny")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a session but its lock."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def whole(pipe, tmp_path_factory):
    """An uninterrupted session with stage 3: the session, its blocks, its files."""
    from st2v_lib.session import Session

    session = Session.create(tmp_path_factory.mktemp("whole") / "s", pipe, PROMPT, FRAMES, SEED)
    blocks = list(session.run())
    return session, blocks, contents(session.folder)
