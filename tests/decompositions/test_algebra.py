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
