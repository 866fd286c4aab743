import pytest

from tdcompress.study import processes


@pytest.fixture(autouse=True)
def _as_in_workers(one_thread):
    """Every test."""


@pytest.fixture
def store(tmp_path):
    return tmp_path / "study.sqlite"


@pytest.fixture(scope="package")
def pool():
    """Two workers for all tests that do not kill any."""
    with processes(2) as executor:
        yield executor
