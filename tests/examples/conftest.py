"""What tests of the examples share."""

import pytest

from examples.paper import __main__ as command
from tdcompress.study import export


@pytest.fixture
def briefly(monkeypatch):
    """The command writes its table alone: words and figures take longer than so few trials."""
    monkeypatch.setattr(command, "_report", lambda preset, output, frame, study: export(frame, output / command.TABLE))
