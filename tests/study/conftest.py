import pytest
import torch

from tdcompress.study import processes


@pytest.fixture(autouse=True)
def _one_thread():
    """As many as a worker has: sums in another order have other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "study.sqlite"


@pytest.fixture(scope="package")
def pool():
    """Two workers for all tests that do not kill any."""
    with processes(2) as executor:
        yield executor
