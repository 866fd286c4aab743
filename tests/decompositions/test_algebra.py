"""Unfoldings, mode products and subspaces against tensorly and NumPy."""

import pytest
import tensorly
import torch

from tdcompress import CompressionError
from tdcompress.decompositions import algebra


@pytest.fixture
def tensor():
    return torch.randn(4, 5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("mode", range(4))
def test_unfold_and_mode_dot_are_tensorlys(tensor, mode):
    matrix = torch.randn(7, tensor.shape[mode], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(algebra.unfold(tensor, mode), torch.from_numpy(tensorly.unfold(tensor.numpy(), mode)))
    expected = tensorly.tenalg.mode_dot(tensor.numpy(), matrix.numpy(), mode)
    assert torch.allclose(algebra.mode_dot(tensor, matrix, mode), torch.from_numpy(expected))


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (6, 6)])
def test_leading_subspace_is_the_svds(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    vectors = algebra.leading_subspace(matrix, 3)
    left, values, _ = torch.linalg.svd(matrix)
    assert torch.allclose(vectors @ vectors.mT, left[:, :3] @ left[:, :3].mT)
    assert torch.allclose(algebra.squared_singular_values(matrix), values.square())


def test_relative_error_of_nothing_is_nothing():
    zero = torch.zeros(3, 3)
    assert algebra.relative_error(zero, zero) == 0
    assert algebra.relative_error(zero, zero + 1) == float("inf")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.int8), "torch.int8"),
        (torch.zeros(3, 3, device="meta"), "meta device"),
        (torch.zeros(3), "two or more"),
        (torch.zeros(3, 0), "non-empty"),
        (torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]]), "2 of 4 weights are NaN or infinite"),
    ],
)
def test_what_cannot_be_decomposed_is_refused(tensor, message):
    with pytest.raises(CompressionError, match=message):
        algebra.check_tensor(tensor)


class TestSolveNearby:
    @pytest.fixture
    def rows(self):
        return torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    @pytest.fixture
    def wanted(self):
        return torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_solves_the_equations(self, rows, wanted, scale):
        normal = rows @ rows.mT
        found = algebra.solve_nearby(scale * normal, scale * wanted, torch.zeros_like(wanted), penalty=0.3)
        expected = torch.linalg.solve(normal + 0.3 * normal.diagonal().diag(), wanted)
        assert torch.allclose(found, expected, rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_what_the_equations_leave_open_stays_as_it_was(self, rows, scale):
        rows[4] = rows[3]  # only the sum of the last two is told
        normal, previous = scale * rows @ rows.mT, torch.arange(5.0, dtype=torch.float64)[:, None]
        found = algebra.solve_nearby(normal, normal @ torch.ones(5, 1, dtype=torch.float64), previous)
        assert torch.allclose(found[:3], torch.ones(3, 1, dtype=torch.float64), atol=1e-6)
        assert float(found[3] + found[4]) == pytest.approx(2, abs=1e-6)
        assert float(found[4] - found[3]) == pytest.approx(1, abs=1e-4)

    def test_where_there_is_no_solution_nothing_changes(self, rows, wanted):
        previous, normal = torch.ones_like(wanted), rows @ rows.mT
        assert algebra.solve_nearby(-normal, wanted, previous) is previous
        assert algebra.solve_nearby(0 * normal, 0 * wanted, previous) is previous
        assert algebra.solve_nearby(normal, wanted / 0, previous) is previous

    def test_the_equations_are_left_alone(self, rows, wanted):
        normal = rows @ rows.mT
        before = normal.clone()
        algebra.solve_nearby(normal, wanted, wanted, 0.5)
        assert torch.equal(normal, before)
        assert torch.allclose(
            algebra.add_to_diagonal(normal, torch.arange(5.0)) - normal, torch.arange(5.0).diag().double()
        )
        assert torch.equal(normal, before)


def test_squared_singular_values_are_never_negative():
    matrix = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 40)
    found = algebra.squared_singular_values(matrix)
    assert found.shape == (30,)
    assert float(found[0]) == pytest.approx(float(matrix.double().square().sum()))
    assert (found >= 0).all()
    assert (found[1:] < 1e-9 * found[0]).all()
