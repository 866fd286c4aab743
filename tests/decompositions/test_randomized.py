"""Leading subspaces of large matrices: as good as said, whatever the spectrum, and only where they pay."""

import pytest
import torch

from tdcompress.decompositions import algebra, randomized, svd
from tdcompress.decompositions.randomized import truncating_subspace


def a_matrix(rows, columns, decay):
    """With known singular values, k to the power −decay."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    values = torch.arange(1, rows + 1).double() ** -decay
    return (left * values.float()) @ right.mT, values


def lost(matrix, basis):
    matrix = matrix.double()
    return float(torch.linalg.vector_norm(matrix - basis.double() @ (basis.double().mT @ matrix)))


@pytest.fixture(autouse=True)
def low_bar(monkeypatch):
    """Matrices that a test can afford count as large."""
    monkeypatch.setattr(randomized, "_SMALLEST", 200)


@pytest.fixture
def exact_calls(monkeypatch):
    calls = []
    real = algebra.leading_subspace
    monkeypatch.setattr(randomized, "leading_subspace", lambda *given: calls.append(given) or real(*given))
    return calls


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("columns", [400, 1500])
def test_the_error_is_within_a_thousandth_of_the_least(decay, columns, exact_calls):
    matrix, values = a_matrix(400, columns, decay)
    basis = truncating_subspace(matrix, 20)
    assert not exact_calls
    assert torch.allclose(basis.mT @ basis, torch.eye(20), atol=1e-4)
    least = float(values[20:].square().sum().sqrt())
    assert least * (1 - 1e-5) <= lost(matrix, basis) <= 1.001 * least


def test_the_vectors_are_in_the_order_of_their_values():
    matrix, values = a_matrix(400, 500, 1.0)
    lengths = torch.linalg.vector_norm(truncating_subspace(matrix, 10).mT @ matrix, dim=1).double()
    assert torch.allclose(lengths, values[:10], rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-18, 0.0, 1e18])
def test_what_float32_cannot_follow_is_solved_exactly(scale, exact_calls):
    matrix, _ = a_matrix(400, 500, 0.5)
    truncating_subspace(scale * matrix, 20)
    assert exact_calls


def test_a_matrix_of_low_rank_is_solved_exactly(exact_calls):
    """Its error is nothing, which float32 cannot tell."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(400, 10, generator=generator) @ torch.randn(10, 500, generator=generator)
    assert lost(matrix, truncating_subspace(matrix, 20)) < 1e-4 * torch.linalg.vector_norm(matrix)
    assert exact_calls


def test_a_rank_near_the_side_and_a_small_matrix_are_solved_exactly(exact_calls, monkeypatch):
    matrix, _ = a_matrix(400, 500, 0.5)
    truncating_subspace(matrix, 300)
    assert len(exact_calls) == 1
    monkeypatch.undo()
    assert len(truncating_subspace(matrix, 20)) == 400


def test_the_same_bits_every_time_and_no_global_generator():
    matrix, _ = a_matrix(400, 500, 0.5)
    state = torch.random.get_rng_state()
    assert torch.equal(truncating_subspace(matrix, 20), truncating_subspace(matrix, 20))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("turned", [False, True])
def test_svd_says_the_error_that_its_factors_have(turned, exact_calls, monkeypatch):
    monkeypatch.setattr(algebra, "_BLOCK", 1000)  # what is larger is not copied in float64
    matrix, values = a_matrix(400, 900, 0.4)
    tensor = matrix.mT.contiguous() if turned else matrix
    found = svd(tensor, 20)
    assert not exact_calls
    error = torch.linalg.vector_norm(tensor - found.to_dense()) / torch.linalg.vector_norm(tensor)
    assert found.solution.relative_error == pytest.approx(float(error), rel=1e-4)
    least = float(values[20:].square().sum().sqrt() / values.square().sum().sqrt())
    assert found.solution.relative_error <= 1.001 * least
