"""Ctrl-C, and whatever else ends a call too early: the model is as it was."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tests.drawing import more

PACKAGE = str(Path(td.__file__).parent)


def a_model():
    """A layer in two places, a tie, a bias that a module around its layer holds, hooks, and an earlier call's word."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shared = nn.Conv2d(8, 8, 3, padding=1)
        model = nn.Sequential(shared, nn.Conv2d(8, 8, 3, padding=1), shared, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
        model[1].weight = shared.weight
        model.bias = model[1].bias
    model[4].requires_grad_(False)
    model[3].eval()
    model[1].register_forward_hook(lambda *args: None)
    model[1].register_load_state_dict_pre_hook(seen)
    layer: Any = model[1]
    layer.mine = "a user's"
    return td.decompose(model, "*", "svd", 0.3, skip=["0", "1", "3"], inplace=True, hooks="keep")


def seen(module, *args):
    """A hook that gets its module."""


def said(value):
    """A value that was put in another's place is told by its id, one that was changed by its contents."""
    return id(value), [*map(id, value.values()), *value] if isinstance(value, dict) else None


def facts(model):
    """All that a call could change: modules and their places, modes, tensors, what hangs on them, what is said."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        "places": {name: id(module) for name, module in modules.items()},
        "modes": {name: module.training for name, module in modules.items()},
        "attributes": {name: {key: said(value) for key, value in vars(one).items()} for name, one in modules.items()},
        "hooks": {
            name: (len(one._forward_hooks), [hook.module() for hook in one._load_state_dict_pre_hooks.values()])
            for name, one in modules.items()
        },
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)},
    }, {name: value.clone() for name, value in model.state_dict().items()}


def same(before, after):
    return before[0] == after[0] and all(torch.equal(before[1][name], value) for name, value in after[1].items())


# What changes a model that it is given.
FUNCTIONS = ("load", "swapped", "swap_in_place", "keep_left")


class Interrupting:
    """Presses Ctrl-C at one of the lines of these functions, counted as they are run."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)

    def trace(self, frame, event, argument):
        code = frame.f_code
        if not (code.co_filename.startswith(PACKAGE) and code.co_name in FUNCTIONS):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


STEP = 3  # so many tests share the lines out among them, of which a quick run has the first
every_start = pytest.mark.parametrize("first", [1, *more(2, 3)])


def every_line(model, call, first):
    """Interrupt a call at one line after the other, until it is through; True where the model was not as before."""
    changed = []
    for at in range(first, 10_000, STEP):
        tried = copy.deepcopy(model)
        before = facts(tried)
        try:
            with Interrupting(at):
                call(tried)
        except KeyboardInterrupt:
            changed.append(not same(before, facts(tried)))
        else:
            return changed
    raise AssertionError("it never ended")


def is_all_or_nothing(changed):
    """As it was until the last change is made; the three lines after it only hand the model back."""
    return len(changed) > 50 // STEP and not any(changed[:-1])


@every_start
def test_a_swap_in_place_is_all_or_nothing_at_every_line(first):
    def call(model):
        td.decompose(model, ["0", "1"], "svd", 0.3, inplace=True, hooks="keep", on_refusal="skip", progress=False)

    assert is_all_or_nothing(every_line(a_model(), call, first))


@every_start
def test_restoring_in_place_is_all_or_nothing_at_every_line(first):
    small = td.decompose(a_model(), ["0", "1"], "svd", 0.3, inplace=True, hooks="keep")
    assert is_all_or_nothing(every_line(small, lambda model: td.restore(model, inplace=True, hooks="keep"), first))


@every_start
def test_loading_in_place_is_all_or_nothing_at_every_line(tmp_path, first):
    small = td.decompose(a_model(), ["0", "1"], "svd", 0.3, hooks="keep")
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(2)
    td.save(small, tmp_path / "small.safetensors")
    assert is_all_or_nothing(
        every_line(a_model(), lambda model: td.load(tmp_path / "small.safetensors", into=model, inplace=True), first)
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_values_that_were_loaded_halfway_are_put_back(tmp_path, monkeypatch, error):
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    td.save(td.decompose(copy.deepcopy(model), "2", "svd", 0.3), tmp_path / "small.safetensors")
    nn.init.zeros_(model[0].weight)
    before = facts(model)
    load = nn.Module.load_state_dict

    def interrupted(self, *args, **kwargs):
        load(self, *args, **kwargs)
        raise error

    monkeypatch.setattr(nn.Module, "load_state_dict", interrupted)
    with pytest.raises(error):
        td.load(tmp_path / "small.safetensors", into=model, inplace=True)
    assert same(before, facts(model))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_solver_that_is_interrupted(monkeypatch, inplace, at, error):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    before, solve, calls = facts(model), td.TuckerConv.solve, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == at:
            raise error
        return solve(*args)

    monkeypatch.setattr(td.TuckerConv, "solve", staticmethod(interrupted))
    with pytest.raises(error):
        td.decompose(model, "*", "tucker", rank=3, inplace=inplace, on_refusal="skip")
    assert len(calls) >= at  # beside it others may have begun
    assert same(before, facts(model))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_progress_that_is_interrupted(inplace, at):
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(3)))
    before = facts(model)

    def interrupted(done, total, what):
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        td.decompose(model, "*", "tucker", 0.3, inplace=inplace, progress=interrupted)
    assert same(before, facts(model))
