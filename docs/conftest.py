"""What the examples of the pages leave behind."""

import pytest
import tensorly


@pytest.fixture(autouse=True)
def _backend_as_before():
    """A page may choose tensorly's backend, as its reader does; all that follows has the one from before."""
    before = tensorly.get_backend()
    yield
    tensorly.set_backend(before)
