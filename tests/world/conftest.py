"""The shipped reader, loaded once."""

import pytest


@pytest.fixture(scope="session")
def reader():
    from st2v_lib.world.reader import load_reader

    return load_reader()
