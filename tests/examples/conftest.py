"""What tests of the examples share."""

import pytest

from examples.paper import __main__ as command
from examples.paper import compared
from tdcompress.study import export, plots


@pytest.fixture(autouse=True, scope="package")
def _coarse():
    """Pictures of few points: nobody looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 60)
        patch.setattr(compared, "_DPI", 60)
        yield


@pytest.fixture
def briefly(monkeypatch):
    """The command writes its table alone: words and figures take longer than so few trials."""
    monkeypatch.setattr(command, "_report", lambda preset, output, frame, study: export(frame, output / command.TABLE))
