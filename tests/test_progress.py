"""progress=: calls, bars, and silence."""

import copy
import io
import sys
from contextlib import redirect_stderr

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress import progress
from tdcompress.progress import following


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "_AT_LEAST", 0)


def on_a_terminal(call):
    """What a call writes to standard error, where that is a terminal."""
    with redirect_stderr(Terminal()) as screen:
        call()
    return screen.getvalue()


def layers_done(progress=None):
    return on_a_terminal(lambda: td.decompose(a_model(), "*", "svd", 0.5, progress=progress))


def a_model():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))


def test_a_function_is_called_after_every_layer():
    calls = []
    td.decompose(a_model(), "*", "svd", 0.5, progress=lambda *call: calls.append(call))
    assert calls == [(1, 2, "decompose: 0"), (2, 2, "decompose: 2")]
    td.decompose(nn.Conv2d(16, 16, 3), "", "svd", 0.5, progress=lambda *call: calls.append(call))
    assert calls[2:] == [(1, 1, "decompose")]


@pytest.mark.parametrize("inplace", [False, True])
def test_what_a_function_raises_goes_through_and_the_model_is_as_it_was(inplace):
    model = a_model()
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())

    def broken(done, total, what):
        raise ZeroDivisionError(what)

    with pytest.raises(ZeroDivisionError, match="decompose: 0"):
        td.decompose(model, "*", "svd", 0.5, inplace=inplace, progress=broken)
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_a_terminal_there_is_a_bar_where_it_is_asked_for(capsys):
    for quiet in (None, False):
        td.decompose(a_model(), "*", "svd", 0.5, progress=quiet)
    assert capsys.readouterr() == ("", "")
    td.decompose(a_model(), "*", "svd", 0.5, progress=True)
    assert "decompose: 100%" in (shown := capsys.readouterr().err)
    assert "2/2" in shown


@pytest.mark.usefixtures("at_once")
def test_in_a_terminal_there_is_a_bar_unless_it_is_unwanted():
    assert layers_done(False) == ""
    assert "decompose:   0%" in (shown := layers_done())
    assert shown.endswith("\r")  # and it is gone again


def test_quick_work_shows_no_bar_in_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "_AT_LEAST", 1000)
    assert layers_done() == ""


@pytest.mark.usefixtures("at_once")
def test_work_inside_work_shows_no_bar_of_its_own():
    calls = []

    def nested():
        with following(True, 1, "outer") as step:
            for inner in (None, True, lambda *call: calls.append(call)):
                with following(inner, 1, "inner") as inner_step:
                    inner_step("a")
            step("b")
        with following(None, 1, "after") as step:
            step("c")

    shown = on_a_terminal(nested)
    assert "outer: 100%" in shown
    assert "inner" not in shown
    assert calls == [(1, 1, "inner: a")]
    assert "after:   0%" in shown


@pytest.mark.usefixtures("at_once")
def test_a_bar_that_is_interrupted_makes_room_for_the_next():
    def interrupted():
        with pytest.raises(KeyboardInterrupt), following(None, 2, "first"):
            raise KeyboardInterrupt
        with following(None, 1, "second") as step:
            step("a")

    assert "second:   0%" in on_a_terminal(interrupted)


@pytest.mark.usefixtures("at_once")
def test_without_tqdm_there_are_no_bars(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert layers_done() == ""
    with pytest.raises(td.CompressionError, match=r"progress=True needs tqdm: pip install 'tdcompress\[study\]'"):
        layers_done(True)


def test_without_standard_error_there_are_no_bars():
    with redirect_stderr(None):
        td.decompose(a_model(), "*", "svd", 0.5)


@pytest.mark.parametrize("wrong", ["yes", 1, []])
def test_anything_else_is_refused(wrong):
    with pytest.raises(td.CompressionError, match="progress must be None, True, False, or a function"):
        td.decompose(a_model(), "*", "svd", 0.5, progress=wrong)
