"""What is done with the sweeps of a solver: where the next one begins, which are forgotten, and what they leave."""

import math

import pytest
import torch

from tdcompress.decompositions import btd, cp, tensor_ring
from tdcompress.decompositions.extrapolation import Run, most_promising
from tests.tensors import random

EPS = torch.finfo(torch.float32).eps


class Scripted:
    """Sweeps that end where they are told to, with the errors that they are told to have."""

    penalty = 0.25

    def __init__(self, errors, values=None, length=0.0, dtype=torch.float32):
        self.errors, self.length = iter(errors), length
        self.values = iter(values if values is not None else [1.0] * 10_000)
        self.tensor = torch.zeros(1, dtype=dtype)
        self.begun = []  # the points that sweeps began at
        self.dtypes = []

    def in_double(self):
        self.tensor = self.tensor.double()
        return self

    def __call__(self, factors):
        self.begun.append([float(one) for one in factors])
        self.dtypes.append(factors[0].dtype)
        value = torch.tensor([next(self.values)], dtype=factors[0].dtype)
        return [value, 10 * value], next(self.errors), self.length


def begun(sweep, first=0.0):
    return Run(sweep, [torch.full((1,), first, dtype=sweep.tensor.dtype) for _ in range(2)])


def test_a_sweep_begins_beyond_the_last_one_and_at_it_again_after_one_that_rose():
    values = [1.0, 3.0, 2.0, 7.0, 5.0, 6.0, 4.0]
    sweep = Scripted([2.0, 1.0, 0.9, 0.95, 0.8, 0.8, 0.7], values, dtype=torch.float64)
    run = begun(sweep)
    run.advance(7, 0.0)
    expected = [
        0.0,
        1.0,  # the first step is not prolonged,
        3 + 1 / 4 * (3 - 1),  # the k-th by (k − 1) / (k + 2) of it;
        2 + 2 / 5 * (2 - 3),
        2.0,  # 7 is forgotten, for the error rose,
        5.0,  # and what follows is a first step again;
        6 + 1 / 4 * (6 - 5),  # an error that is the same is as good
    ]
    assert [point[0] for point in sweep.begun] == pytest.approx(expected)
    assert [point[1] for point in sweep.begun] == pytest.approx([10 * one for one in expected])
    assert [float(rows) for rows in run.current] == [4, 40]
    assert run.sweeps == 7
    assert not any(rows.is_inference() for rows in run.current)


def test_a_step_is_prolonged_by_less_than_itself():
    sweep = Scripted([1 / number for number in range(1, 302)], range(301), dtype=torch.float64)
    begun(sweep).advance(301, 0.0)
    assert sweep.begun[-1][0] == pytest.approx(299 + 0.97)


def test_what_is_minimized_is_the_squared_error_and_the_penalty():
    run = begun(Scripted([3.0, 2.0, 2.5], length=2.0))
    run.advance(1, 0.0)
    assert (run.loss, run.error) == (9 + 0.25 * 2, 3)  # also above 1
    run.advance(2, 0.0)
    assert (run.loss, run.error) == (4 + 0.25 * 2, 2)


def test_a_plain_sweep_is_kept_even_if_it_rises():
    """For it can do so by the rounding of its loss alone; the least loss is what was seen before."""
    sweep = Scripted([1.0, 2.0, 3.0, 0.5], [1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    run = begun(sweep)
    run.advance(3, 0.0)
    assert [float(rows) for rows in run.current] == [3, 30]
    assert (run.loss, run.error) == (1, 3)


@pytest.mark.parametrize(("roundings", "kept"), [(15.5, True), (16, True), (16.5, False)])
def test_a_rise_by_rounding_is_none(roundings, kept):
    rise = roundings * EPS * 4
    sweep = Scripted([1.0, math.sqrt(0.5), math.sqrt(0.5 + rise)], [1.0, 2.0, 3.0], length=4.0)
    sweep.penalty = 0.0
    run = begun(sweep)
    run.advance(3, 0.0)
    assert float(run.current[0]) == (3 if kept else 2)
    assert run.loss == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("rise", "after"), [(EPS, torch.float64), (0.0, torch.float32), (-EPS, torch.float32)])
def test_once_rounding_is_seen_sweeps_go_on_in_float64(rise, after):
    losses = [1 - 0.01 * number for number in range(9)] + [0.92 + rise] + [0.9 - 0.01 * number for number in range(20)]
    sweep = Scripted(map(math.sqrt, losses), length=1.0)
    sweep.penalty = 0.0
    run = begun(sweep)
    run.advance(30, 0.0)
    assert sweep.dtypes == [torch.float32] * 10 + [after] * 20
    assert {rows.dtype for rows in run.current} == {after}
    assert run.loss == pytest.approx(losses[-1])


def test_after_the_last_sweep_nothing_is_refined():
    sweep = Scripted([1.0, 0.5, math.sqrt(0.25 + EPS), *[0.5] * 7], length=1.0)
    sweep.penalty = 0.0
    run = begun(sweep)
    assert not run.advance(10, 0.0)
    assert run.loss == pytest.approx(0.25)
    assert sweep.tensor.dtype is torch.float32


def test_it_stops_where_ten_sweeps_gain_too_little():
    errors = [1.0] * 10 + [0.75] * 10 + [0.625] * 10 + [0.5] * 10
    for tol, sweeps in ((0.0199, 40), (0.0201, 30)):  # from 0.75 to 0.625 is a fifth of the latter
        run = begun(Scripted(errors, dtype=torch.float64))
        assert run.advance(40, tol) is (sweeps == 30)
        assert run.sweeps == sweeps
    still = begun(Scripted([1.0] * 40, dtype=torch.float64))
    assert still.advance(40, 0.0)
    assert still.sweeps == 20


def test_of_several_runs_the_one_that_is_best_after_thirty_sweeps_goes_on():
    falling = [1 - 0.001 * number for number in range(40)]
    errors = ([*falling[:29], 0.5], [one - 0.1 for one in falling], [*falling[:30], 0.1])
    runs = [begun(Scripted(each, dtype=torch.float64)) for each in errors]
    assert most_promising(runs, 100) is runs[0]
    assert [run.sweeps for run in runs] == [30, 30, 30]
    few = [begun(Scripted(each, dtype=torch.float64)) for each in errors]
    assert most_promising(few, 20) is few[1]
    alone = begun(Scripted([]))
    assert most_promising([alone], 100) is alone


PARTS = {
    "cp": lambda kernel: cp(kernel, 4).factors,
    "btd": lambda kernel: [getattr(btd(kernel, (2, 2, 2)), name) for name in ("left", "right", "cores")],
    "tr": lambda kernel: tensor_ring(kernel.movedim(0, -1), (2, 3, 3, 3)).cores,
}


@pytest.mark.parametrize("method", PARTS)
def test_factors_can_be_trained(method):
    """The sweeps themselves are made without being ready for gradients."""
    parts = [part.requires_grad_() for part in PARTS[method](random((6, 5, 3, 3), dtype=torch.float32))]
    sum(part.square().sum() for part in parts).backward()
    assert all(torch.equal(part.grad, 2 * part) for part in parts)
