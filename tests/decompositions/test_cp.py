"""CP against tensorly, closed forms, and the kernels that make other solvers fall over."""

import dataclasses
import math
import time
from typing import Any

import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError
from tdcompress.decompositions import CPOptions, TuckerOptions, cp, cp_limit
from tdcompress.decompositions.algebra import mode_dot
from tdcompress.decompositions.als import Sweep, start
from tdcompress.decompositions.extrapolation import Run
from tests.drawing import cases
from tests.tensors import random

SHAPES = [(6, 5, 3, 3), (4, 7, 3), (5, 1, 3, 3), (8, 3), (3, 4, 2, 3, 2), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_full_rank_is_exact(shape):
    tensor = random(shape)
    found = cp(tensor, cp_limit(shape))
    assert torch.allclose(found.to_dense(), tensor, atol=1e-12)
    assert found.solution.sweeps == 0
    assert found.solution.converged


def test_the_seconds_are_those_that_it_took():
    began = time.perf_counter()
    seconds = cp(random((6, 5, 3, 3)), 4).solution.seconds
    assert 0 < seconds <= time.perf_counter() - began


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reported_error_and_the_dense_form_are_the_factors_own(shape):
    tensor = random(shape)
    found = cp(tensor, max(1, cp_limit(shape) // 2))
    dense = tensorly.cp_to_tensor((found.weights.numpy(), [factor.numpy() for factor in found.factors]))
    assert torch.allclose(found.to_dense(), torch.from_numpy(dense), atol=1e-12)
    expected = torch.linalg.vector_norm(tensor - torch.from_numpy(dense)) / torch.linalg.vector_norm(tensor)
    assert found.solution.relative_error == pytest.approx(float(expected), abs=1e-12)
    assert all(torch.allclose(f.norm(dim=0), torch.ones(found.rank, dtype=f.dtype)) for f in found.factors)


def decaying(shape, power):
    kernel = random(shape, dtype=torch.float32)
    for mode, size in enumerate(shape):
        basis, _ = torch.linalg.qr(random((size, size), seed=mode, dtype=torch.float32))
        kernel = mode_dot(kernel, basis * torch.arange(1, size + 1) ** -power, mode)
    return kernel


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("starts", [("orthogonal",), ("random", "orthogonal")])
def test_sweeps_on_a_core_end_where_those_on_the_whole_tensor_do(power, starts, monkeypatch):
    tensor, swept = decaying((40, 48, 3, 3), power), []
    whole = cp(tensor, 9, solver=CPOptions(starts=starts)).solution
    monkeypatch.setattr("tdcompress.decompositions.als._LARGE", 1)
    sweep = Sweep.__call__
    monkeypatch.setattr(Sweep, "__call__", lambda self, rows: (swept.append(self.shape[0]), sweep(self, rows))[1])
    found = cp(tensor, 9, solver=CPOptions(starts=starts))
    assert found.solution.relative_error < 1.003 * whole.relative_error
    assert found.solution.sweeps <= CPOptions().max_iter
    assert swept[0] == 11  # 1.2 singular vectors a term
    assert swept[-1] == 48
    assert [tuple(factor.shape) for factor in found.factors] == [(40, 9), (48, 9), (3, 9), (3, 9)]


def test_a_tensor_of_few_terms_is_found_on_a_core(monkeypatch):
    monkeypatch.setattr("tdcompress.decompositions.als._LARGE", 1)
    rows = [random((4, size), seed) for seed, size in enumerate((30, 20, 3, 3))]
    tensor = torch.einsum("ra,rb,rc,rd->abcd", *rows)
    assert cp(tensor, 4, solver=CPOptions(penalty=0.0, tol=0.0)).solution.relative_error < 1e-6


def test_a_matrix_is_solved_by_the_svd():
    matrix = random((9, 6))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(cp(matrix, 2).to_dense(), left[:, :2] * values[:2] @ right[:2])


def test_the_small_singular_values_of_a_float32_matrix_are_right_too():
    basis, _ = torch.linalg.qr(random((40, 40)))
    matrix = (basis @ torch.logspace(0, -9, 40, dtype=torch.float64).diag() @ basis.mT).float()
    expected = torch.linalg.svdvals(matrix.double())[:35]
    assert torch.allclose(cp(matrix, 35).weights.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("shape", "rank"), [((6, 5, 3), 4), ((6, 5, 3), 15), ((6, 5), 2)])
def test_no_gradient_flows_back_into_the_tensor(shape, rank):
    found = cp(random(shape).requires_grad_(), rank)
    assert not found.weights.requires_grad
    assert not any(factor.requires_grad for factor in found.factors)


def test_a_tensor_of_low_rank_is_found():
    factors = [random((size, 4), seed) for seed, size in enumerate((12, 10, 3, 3))]
    tensor = torch.einsum("ar,br,cr,dr->abcd", *factors)
    assert cp(tensor, 4, solver=CPOptions(max_iter=500, tol=1e-9, penalty=0)).solution.relative_error < 1e-6
    assert cp(tensor, 4).solution.relative_error < 1e-3  # the penalty's price


def test_the_penalty_is_what_is_minimized_with_the_error():
    tensor = random((16, 12, 3, 3))
    found = {p: cp(tensor, 24, solver=CPOptions(penalty=p, tol=0, max_iter=600)) for p in (1e-6, 1e-4, 1e-2)}
    lengths = [float(one.weights.square().sum() / tensor.square().sum()) for one in found.values()]
    assert lengths == sorted(lengths, reverse=True)
    sensitivities: list[Any] = [one.solution.sensitivity for one in found.values()]
    assert sensitivities == sorted(sensitivities, reverse=True)
    errors = [one.solution.relative_error**2 for one in found.values()]
    for penalty, error, length in zip(found, errors, lengths, strict=True):
        others = [other + penalty * size for other, size in zip(errors, lengths, strict=True)]
        assert error + penalty * length <= min(others) * 1.02  # a local optimum of its own loss


def test_every_mttkrp_is_tensorlys():
    """One sweep from given factors is textbook ALS, with every newest factor used at once."""
    tensor = random((7, 6, 3, 2))
    begin = start("random", tensor, 4, torch.Generator().manual_seed(1))
    swept, error, _ = Sweep(tensor)(begin)
    factors = [rows.mT.numpy() for rows in begin]
    for mode in range(4):
        product = tensorly.unfold(tensor.numpy(), mode) @ tensorly.tenalg.khatri_rao(factors, skip_matrix=mode)
        normal = torch.ones(4, 4, dtype=torch.float64).numpy()
        for other in range(4):
            if other != mode:
                normal = normal * (factors[other].T @ factors[other])
        factors[mode] = torch.linalg.solve(torch.from_numpy(normal), torch.from_numpy(product).mT).mT.numpy()
    expected = torch.from_numpy(tensorly.cp_to_tensor((None, factors)))
    ours = torch.from_numpy(tensorly.cp_to_tensor((None, [rows.mT.numpy() for rows in swept])))
    assert torch.allclose(ours, expected, atol=1e-5)
    distance = torch.linalg.vector_norm(tensor - ours) / torch.linalg.vector_norm(tensor)
    assert float(error) == pytest.approx(float(distance), abs=1e-9)


def test_it_loses_no_more_than_tensorlys_solver_in_as_many_sweeps():
    tensor = random((24, 20, 3, 3), dtype=torch.float32)
    ours = cp(tensor, 30, solver=CPOptions(max_iter=100))
    theirs = cp(tensor, 30, solver="tensorly")
    assert ours.solution.relative_error <= theirs.solution.relative_error


@pytest.mark.parametrize("kind", ["orthogonal", "random"])
def test_the_loss_falls_with_every_accepted_sweep(kind):
    tensor = random((16, 12, 3, 3))
    run = Run(Sweep(tensor, 1e-4), start(kind, tensor, 20, torch.Generator().manual_seed(0)))
    before, unchanged = float("inf"), 0
    for _ in range(200):
        run.advance(1, 0.0)
        loss = float(run.loss)
        assert loss <= before
        unchanged = unchanged + 1 if loss == before else 0
        assert unchanged <= 1 or run.sweeps > 150  # after one that overshot comes a plain sweep, which falls
        before = loss
        dense = torch.from_numpy(tensorly.cp_to_tensor((None, [rows.mT.numpy() for rows in run.current])))
    assert float(run.error) == pytest.approx(float((tensor - dense).norm() / tensor.norm()), abs=1e-9)


def test_the_orthogonal_start_is_the_best_sum_of_rotated_slices():
    tensor = random((8, 6, 3, 2))
    rows = start("orthogonal", tensor, 10, torch.Generator())
    dense = torch.from_numpy(tensorly.cp_to_tensor((None, [factor.mT.numpy() for factor in rows])))
    lengths = torch.stack([factor.norm(dim=1) for factor in rows]).prod(0)
    lost = tensor.norm().square() - lengths.square().sum()  # the terms are mutually orthogonal
    assert float((tensor - dense).norm().square()) == pytest.approx(float(lost))
    full = start("orthogonal", tensor, 36, torch.Generator())
    assert torch.allclose(torch.from_numpy(tensorly.cp_to_tensor((None, [f.mT.numpy() for f in full]))), tensor)


@pytest.mark.parametrize(("shape", "rank", "best"), [((16, 12, 3, 3), 20, "orthogonal"), ((8, 7, 3, 3), 12, "random")])
def test_the_best_of_several_starts_goes_on(shape, rank, best):
    tensor = random(shape)

    def error(*starts, max_iter=20):
        return cp(
            tensor, rank, solver=CPOptions(starts=starts, max_iter=max_iter, tol=0, penalty=0)
        ).solution.relative_error

    alone = {kind: error(kind) for kind in ("orthogonal", "random")}
    assert min(alone, key=alone.__getitem__) == best
    for starts in (("orthogonal", "random"), ("random", "orthogonal")):
        assert error(*starts) == alone[best] < max(alone.values())
        assert error(*starts, max_iter=60) == error(best, max_iter=60)


def test_the_orthogonal_start_is_the_default():
    tensor, given = random((16, 12, 3, 3)), CPOptions(starts=("orthogonal",))
    assert cp(tensor, 20).solution.relative_error == cp(tensor, 20, solver=given).solution.relative_error


@pytest.mark.parametrize(
    "kernel",
    [
        torch.zeros(8, 6, 3, 3),
        torch.ones(8, 6, 3, 3),
        random((8, 6, 3, 3), dtype=torch.float32)[:1].repeat(8, 1, 1, 1),
        torch.cat([random((4, 6, 3, 3), dtype=torch.float32)] * 2),
        random((8, 6, 3, 3), dtype=torch.float32) * 1e20,
        random((8, 6, 3, 3), dtype=torch.float32) * 1e-20,
        random((8, 6, 1, 7), dtype=torch.float32),
        random((8, 6, 7, 7), dtype=torch.float32),
        random((1, 6, 3, 3), dtype=torch.float32),
        random((8, 6, 3, 3), dtype=torch.float16),
        random((8, 6, 3, 3), dtype=torch.bfloat16),
    ],
    ids=["zero", "ones", "rank-one-out", "duplicated", "huge", "tiny", "1x7", "7x7", "single", "half", "bfloat16"],
)
def test_awkward_kernels_are_ordinary_input(kernel):
    found = cp(kernel, 5)
    assert found.to_dense().isfinite().all()
    assert found.to_dense().dtype == kernel.dtype
    assert 0 <= found.solution.relative_error < 1
    sensitivity = found.solution.sensitivity
    assert sensitivity is not None
    assert math.isfinite(sensitivity)
    assert (sensitivity > 0) == bool(kernel.any())


@cases(250)
@given(data=st.data(), shape=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_any_small_tensor_at_any_rank(data, shape, seed):
    tensor, limit = random(shape, seed), cp_limit(shape)
    assert cp(tensor, limit).solution.relative_error < 1e-12
    assert 0 <= cp(tensor, data.draw(st.integers(1, limit))).solution.relative_error <= 1 + 1e-9


def test_same_generator_same_bits():
    tensor = random((10, 8, 3, 3), dtype=torch.float32)
    options = CPOptions(starts=("random",))
    one, two, other = (cp(tensor, 6, solver=options, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.factors, two.factors, strict=True))
    assert not torch.equal(one.factors[0], other.factors[0])


@pytest.mark.parametrize("rank", [0, -1, 271, 2.0, True])
def test_an_infeasible_rank_is_refused_with_the_largest(rank):
    with pytest.raises(CompressionError, match="largest feasible is 270"):
        cp(random((40, 30, 3, 3)), rank)


def test_what_is_no_kernel_is_refused():
    for tensor, message in (
        (torch.full((4, 3, 2), float("nan")), "24 of 24 weights are NaN or infinite"),
        (torch.ones(4, 3, 2, dtype=torch.int64), "int64"),
    ):
        with pytest.raises(CompressionError, match=message):
            cp(tensor, 2)


def test_random_starts_are_those_of_seed_0_unless_told_otherwise():
    tensor, options = random((6, 5, 4)), CPOptions(starts=("random",), max_iter=3)
    found, given = (cp(tensor, 4, solver=options, generator=one) for one in (None, torch.Generator().manual_seed(0)))
    assert torch.equal(found.to_dense(), given.to_dense())


@pytest.mark.parametrize("solver", [None, "tensorly"])
def test_the_scale_of_a_kernel_is_that_of_its_terms(solver):
    kernel = random((6, 5, 3, 3), dtype=torch.float32)
    plain, small = (cp(kernel * scale, 5, solver=solver) for scale in (1.0, 2.0**-60))
    torch.testing.assert_close(small.to_dense() * 2.0**60, plain.to_dense())


def test_a_decomposition_is_not_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        cp(random((4, 3, 2)), 2).weights = None  # type: ignore[assignment, misc]


def test_an_unknown_solver_is_refused():
    with pytest.raises(CompressionError, match="unknown solver 'magic'"):
        cp(random((4, 4)), 1, solver="magic")
    with pytest.raises(CompressionError, match="unknown solver TuckerOptions"):
        cp(random((4, 4)), 1, solver=TuckerOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": -1}, "max_iter must be a whole number from 0, got -1"),
        ({"max_iter": 2.5}, "max_iter must be a whole number from 0, got 2.5"),
        ({"tol": float("nan")}, "tol must be a number from 0"),
        ({"starts": ()}, "starts must"),
        ({"spatial": "both"}, "spatial must"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(CompressionError, match=message):
        CPOptions(**options)


def test_a_term_that_vanished_adds_nothing_to_the_sensitivity():
    found = cp(random((6, 5, 3)), 4)
    padded = dataclasses.replace(
        found,
        weights=torch.cat([found.weights, torch.zeros(1)]),
        factors=tuple(torch.cat([factor, torch.zeros(len(factor), 1)], 1) for factor in found.factors),
    )
    assert padded.sensitivity == pytest.approx(found.sensitivity, rel=1e-12)


def test_the_sensitivity_is_the_error_that_noise_on_the_factors_makes():
    found = cp(random((8, 6, 3, 3)), 7)
    factors, dense = found.balanced_factors(), found.to_dense()
    generator, scale, squares = torch.Generator().manual_seed(0), 1e-4, []
    for _ in range(4000):
        noisy = [f + scale * torch.randn(f.shape, generator=generator, dtype=f.dtype) for f in factors]
        squares.append(float((torch.einsum("ar,br,cr,dr->abcd", *noisy) - dense).square().sum()))
    measured = sum(squares) / len(squares) / scale**2 / float(dense.square().sum())
    assert found.solution.sensitivity == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("work", [1.0, 1e7, None])
def test_work_bounds_the_sweeps_but_for_the_first_ten(work):
    tensor, rank = torch.randn(12, 10, 8, generator=torch.Generator().manual_seed(0)), 20
    found = cp(tensor, rank, solver=CPOptions(max_iter=200, tol=0, max_work=work))
    a_sweep = 2 * 12 * 10 * 8 * rank + rank**3 + 2 * rank**2 * (12 + 10 + 8)
    expected = 200 if work is None else max(10, int(work / a_sweep))
    assert found.solution.sweeps == expected


@pytest.mark.parametrize("work", [0, -1.0])
def test_no_work_is_refused(work):
    with pytest.raises(CompressionError, match="max_work must be a number above 0 or None"):
        CPOptions(max_work=work)
