"""Numbers beside tensors: Python's own on the CPU, tensors where reading them would make a device wait."""

import math

import pytest
import torch

from tdcompress.decompositions import algebra, als, extrapolation, scalars
from tdcompress.decompositions.als import Sweep, start
from tdcompress.decompositions.extrapolation import Run
from tests.tensors import random


def test_on_the_cpu_a_scalar_is_a_number_and_a_choice_copies_nothing():
    one, other = torch.zeros(2), torch.ones(2)
    assert type(scalars.scalar(torch.tensor(2.0))) is float
    for true, false in ((True, False), (torch.tensor(True), torch.tensor(False))):
        assert scalars.either(true, one, other) is one
        assert scalars.either(false, one, other) is other


def test_elsewhere_nothing_is_read():
    value = torch.zeros((), device="meta")  # which has no values to read
    assert scalars.scalar(value) is value
    chosen = scalars.either(value == 0, torch.zeros(2, 3, device="meta"), torch.ones(2, 3, device="meta"))
    assert chosen.is_meta
    assert chosen.shape == (2, 3)


@pytest.mark.parametrize("number", [float, lambda value: torch.tensor(value, dtype=torch.float64)])
def test_a_distance_is_never_below_zero_and_says_what_is_not_a_number(number):
    distance = scalars.relative_distance
    assert float(distance(number(4.0), number(2.5), number(1.36))) == pytest.approx(0.3)  # √((4 − 5 + 1.36) / 4)
    assert float(distance(number(4.0), number(4.0), number(4 - 1e-9))) == 0
    assert math.isnan(distance(number(4.0), number(math.nan), number(4.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sweeps_are_the_same_where_their_numbers_stay_on_the_device(dtype, monkeypatch):
    tensor = random((16, 12, 3, 3), dtype=dtype)

    def swept() -> Run:
        run = Run(Sweep(tensor, 1e-4), start("random", tensor, 20, torch.Generator().manual_seed(0)))
        for _ in range(4):
            run.advance(35, 0.0)
        return run

    here = swept()
    for module in (algebra, als, extrapolation):
        monkeypatch.setattr(module, "scalar", lambda value: value)
        if hasattr(module, "either"):
            monkeypatch.setattr(module, "either", _on_the_device)
    monkeypatch.setattr(scalars, "either", _on_the_device)
    there = swept()
    assert isinstance(there.loss, torch.Tensor)
    assert float(there.loss) == pytest.approx(float(here.loss), rel=1e-6)
    assert float(there.error) == pytest.approx(float(here.error), rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(there.current, here.current, strict=True))


def _on_the_device(condition, one, other):
    return torch.where(torch.as_tensor(condition), one, other)


def test_a_sweep_that_ends_in_no_numbers_is_forgotten(monkeypatch):
    tensor = random((8, 6, 3))
    run = Run(Sweep(tensor, 1e-4), start("random", tensor, 4, torch.Generator().manual_seed(0)))
    run.advance(20, 0.0)
    loss, error = run.loss, run.error
    with monkeypatch.context() as patched:
        nothing = [rows * math.nan for rows in run.current]
        patched.setattr(Sweep, "__call__", lambda self, factors: (nothing, math.nan, 1.0))
        run.advance(2, 0.0)
    assert (run.loss, run.error) == (loss, error)
    run.advance(20, 0.0)
    assert run.loss < loss
    assert run.error < error
