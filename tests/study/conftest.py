import pytest


@pytest.fixture(autouse=True)
def _as_in_workers(one_thread):
    """Every test."""


@pytest.fixture
def store(tmp_path):
    return tmp_path / "study.sqlite"
