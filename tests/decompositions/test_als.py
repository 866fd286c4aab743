"""CP's sweeps line by line: what one minimizes, and which of them see the tensor itself."""

import math

import pytest
import tensorly
import torch

import tdcompress.decompositions.als as module
from tdcompress.decompositions import CPOptions, cp
from tdcompress.decompositions.als import Sweep, start
from tests.tensors import random


@pytest.fixture
def swept(monkeypatch):
    """The shape and the penalty of every sweep that is made."""
    made = []
    sweep = Sweep.__call__

    def noted(self, rows):
        made.append((tuple(self.shape), self.penalty))
        return sweep(self, rows)

    monkeypatch.setattr(Sweep, "__call__", noted)
    return made


def dense(rows):
    return torch.from_numpy(tensorly.cp_to_tensor((None, [factor.mT.numpy() for factor in rows])))


def begun(shape, rank, dtype=torch.float64):
    return start("random", random(shape, dtype=dtype), rank, torch.Generator().manual_seed(1))


def test_every_mode_is_solved_for_with_the_penalty_on_the_length_of_its_terms():
    tensor, penalty = random((7, 6, 3, 2)), 0.3
    begin = begun(tensor.shape, 4)
    rows, error, length = Sweep(tensor, penalty)(begin)
    factors = [one.mT.numpy() for one in begin]
    for mode in range(4):
        others = tensorly.tenalg.khatri_rao(factors, skip_matrix=mode)
        normal = torch.from_numpy(others.T @ others)
        product = torch.from_numpy(tensorly.unfold(tensor.numpy(), mode) @ others)
        factors[mode] = torch.linalg.solve(normal + penalty * normal.diagonal().diag(), product.mT).mT.numpy()
    expected = torch.from_numpy(tensorly.cp_to_tensor((None, factors)))
    assert torch.allclose(dense(rows), expected, atol=1e-5)
    assert float(error) == pytest.approx(float((tensor - expected).norm() / tensor.norm()), abs=1e-6)
    norms = torch.stack([one.norm(dim=1) for one in rows])
    assert float(length) == pytest.approx(float(norms.prod(0).square().sum() / tensor.square().sum()))
    assert torch.allclose(norms, norms[0])  # a term is as long in every mode


def test_a_term_that_vanished_in_one_mode_comes_back_and_one_that_did_in_all_stays():
    tensor, rows = random((7, 6, 3)), begun((7, 6, 3), 3)
    rows[1][0] = 0
    for one in rows:
        one[2] = 0
    after, error, _ = Sweep(tensor)(rows)
    assert math.isfinite(error)
    assert all(one[0].norm() > 0.1 for one in after)
    assert not any(one[2].any() for one in after)


def test_in_double_it_is_the_same_sweep():
    tensor, rows = random((9, 8, 3), dtype=torch.float32), begun((9, 8, 3), 4, torch.float32)
    found, error, length = Sweep(tensor, 0.2)(rows)
    expected, *said = Sweep(tensor, 0.2).in_double()([one.double() for one in rows])
    assert {one.dtype for one in expected} == {torch.float64}
    assert {one.dtype for one in found} == {torch.float32}
    assert torch.allclose(dense(found).double(), dense(expected), atol=1e-5)
    assert [float(error), float(length)] == pytest.approx([float(one) for one in said], rel=1e-5)


def test_an_error_of_one_percent_is_what_it_is_in_float32():
    exact = begun((24, 20, 3, 3), 3)
    tensor = (dense(exact) + 0.01 * dense(exact).std() * random((24, 20, 3, 3), seed=2)).float()
    rows, error, _ = Sweep(tensor)([one.float() for one in exact])
    distance = (tensor.double() - dense([one.double() for one in rows])).norm() / tensor.double().norm()
    assert float(error) == pytest.approx(float(distance), rel=0.005)
    assert float(distance) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_where_nothing_is_lost_rounding_makes_no_root_of_less_than_nothing(seed):
    exact = start("random", random((9, 8, 3)), 3, torch.Generator().manual_seed(seed))
    _, error, _ = Sweep(dense(exact).float())([one.float() for one in exact])
    assert 0 <= error < 2e-3


def test_random_starts_are_the_same_in_every_type():
    double, single = begun((7, 6, 3), 4), begun((7, 6, 3), 4, torch.float32)
    assert {one.dtype for one in single} == {torch.float32}
    assert all(torch.equal(one.float(), other) for one, other in zip(double, single, strict=True))


def test_the_two_products_of_a_sweep_are_over_the_largest_modes(swept):
    cp(random((3, 12, 2, 16)), 5, solver=CPOptions(max_iter=1))
    assert swept == [((16, 12, 3, 2), 1e-4)]


def test_the_terms_are_never_so_long_that_the_type_of_the_factors_rounds_their_sum_away():
    tensor, limit = random((8, 7, 3, 3), dtype=torch.bfloat16), torch.finfo(torch.bfloat16).eps ** 2
    none, least, more = (
        cp(tensor, 12, solver=CPOptions(penalty=one, max_iter=20)).to_dense() for one in (0.0, limit, 4 * limit)
    )
    assert torch.equal(none, least)
    assert not torch.equal(least, more)


class TestCore:
    @pytest.mark.parametrize(
        ("shape", "rank", "cut"),
        [
            ((64, 64, 8, 8), 4, {0: 5, 1: 5, 2: 5, 3: 5}),  # 1.2 singular vectors a term
            ((64, 63, 8, 8), 4, {}),  # small enough to be swept as it is
            ((256, 12, 10, 10), 10, {0: 12}),  # a mode of 12 has nothing to leave out
            ((64, 64, 64), 44, {0: 53, 1: 53, 2: 53}),  # 0.57 of the elements
            ((64, 64, 64), 45, {}),  # 0.601
        ],
    )
    def test_long_modes_of_large_tensors_are_cut_where_it_saves_enough(self, shape, rank, cut):
        core, bases = module._core(random(shape, dtype=torch.float32), rank)
        assert {mode: basis.shape[1] for mode, basis in bases.items()} == cut
        assert core.shape == tuple(cut.get(mode, size) for mode, size in enumerate(shape))

    @pytest.mark.parametrize(("most", "last"), [(200, 40), (80, 20)])
    def test_the_last_sweeps_see_the_tensor_itself(self, most, last, swept, monkeypatch):
        monkeypatch.setattr(module, "_LARGE", 1)
        options = CPOptions(max_iter=most, tol=0, penalty=3e-4)
        found = cp(random((20, 24, 3), dtype=torch.float32), 5, solver=options).solution
        assert swept == [((6, 6, 3), 3e-4)] * (most - last) + [((24, 20, 3), 3e-4)] * last
        assert (found.sweeps, found.converged) == (most, False)

    def test_sweeps_of_several_starts_are_counted_once(self, swept, monkeypatch):
        options = CPOptions(max_iter=80, tol=0, starts=("orthogonal", "random"))
        tensor = random((20, 24, 3))
        assert cp(tensor, 5, solver=options).solution.sweeps == 80
        assert len(swept) == 30 + 80
        swept.clear()
        monkeypatch.setattr(module, "_LARGE", 1)
        assert cp(tensor, 5, solver=options).solution.sweeps == 80
        assert [shape for shape, _ in swept] == [(6, 6, 3)] * (30 + 60) + [(24, 20, 3)] * 20

    def test_both_parts_stop_where_ten_sweeps_gain_too_little(self, swept, monkeypatch):
        monkeypatch.setattr(module, "_LARGE", 1)
        found = cp(random((20, 24, 3)), 5, solver=CPOptions(tol=0.05)).solution  # half the error in ten sweeps
        assert [shape for shape, _ in swept] == [(6, 6, 3)] * 20 + [(24, 20, 3)] * 20
        assert (found.sweeps, found.converged) == (40, True)
