"""CP's curve beside what the solver ends at, where a plan chooses."""

import math
from itertools import pairwise, product

import pytest
import torch

import tdcompress.ranks.cp as module
from tdcompress.decompositions import cp, cp_limit
from tdcompress.decompositions.als import Sweep
from tdcompress.decompositions.orthogonal import OrthogonalTerms
from tdcompress.ranks import cp_curve
from tests.drawing import each_once, more
from tests.tensors import trained_weights


def decaying(shape, power, seed=0):
    """Singular values that fall as so many powers of their number along every mode."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(*shape, generator=generator)
    for mode, size in enumerate(shape):
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
        scaled = basis * torch.arange(1, size + 1).pow(-power)
        kernel = torch.tensordot(scaled, kernel, dims=([1], [mode])).movedim(0, mode)
    return kernel


def trained(layer):
    return trained_weights()[f"{layer}.weight"].float()


def off(kernel, share):
    """The curve's relative error over the solver's, less one, at a share of the parameters."""
    rank = round(share * kernel.numel() / sum(kernel.shape))
    budgets = [rank * sum(kernel.shape)]
    ((found, lost),) = cp_curve(kernel[None], budgets)
    assert found == (rank,)
    return math.sqrt(lost) / cp(kernel, rank).solution.relative_error - 1


@pytest.mark.parametrize(
    ("layer", "share"),
    [
        ("conv2", 0.02),
        ("conv5", 0.05),
        *more(("conv2", 0.1), ("conv2", 0.25), ("conv2", 0.5), ("conv4", 0.2), ("conv6", 0.1)),
    ],
)
def test_within_three_percent_on_trained_kernels(layer, share):
    assert abs(off(trained(layer), share)) < 0.03


LARGE = {"64 taps": ((24, 32, 64), 0.5), "3 × 3": ((64, 96, 3, 3), 0.5), "flat": ((24, 64, 9), 0.0)}


@pytest.mark.parametrize(("kernel", "share"), each_once(product(LARGE, [0.02, 0.1, 0.25])))
def test_within_three_percent_on_kernels_that_are_too_large_to_sweep(kernel, share, monkeypatch):
    monkeypatch.setattr(module, "_WORK", 2e8)
    assert abs(off(decaying(*LARGE[kernel]), share)) < 0.03


def test_steep_spectra_of_many_taps_are_the_worst_case():
    kernel = decaying((24, 32, 64), 1.0)
    assert abs(off(kernel, 0.25)) < 0.06


def test_a_large_kernel_is_not_swept_as_it_is(monkeypatch):
    """The work stays a multiple of the weights, whatever the largest budget."""
    swept = []

    class Counted(Sweep):
        def __call__(self, factors):
            swept.append(self.tensor.numel() * len(factors[0]))
            return super().__call__(factors)

    monkeypatch.setattr(module, "Sweep", Counted)
    kernel = torch.randn(1, 64, 128, 64)
    size = kernel.numel()
    cp_curve(kernel, [size // 10, size // 2, size])
    assert sum(swept) < 5000 * size  # on the kernel itself, at these three ranks alone, 400 000


@pytest.mark.parametrize("shape", [(1, 12, 16), (3, 6, 8), (1, 7, 1, 1), (2, 1, 1, 3, 3), (1, 12, 1, 5, 1)])
def test_a_matrix_is_exact(shape):
    kernels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    size = math.prod(shape[1:])
    for rank, lost in cp_curve(kernels, [size // 3, size // 2, size]):
        solved = [cp(kernel, rank[0]).solution.relative_error for kernel in kernels]
        norms = [float(kernel.norm()) for kernel in kernels]
        expected = sum((e * n) ** 2 for e, n in zip(solved, norms, strict=True)) / sum(n**2 for n in norms)
        assert lost == pytest.approx(expected, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize(
    "kernels",
    [
        torch.zeros(1, 6, 6, 3, 3),
        torch.ones(1, 6, 6, 3, 3),
        torch.randn(1, 6, 6, 3, 3) * 1e-30,
        torch.cat([torch.zeros(1, 6, 6, 5), torch.randn(1, 6, 6, 5)]),
        torch.randn(9, 3, 2, 3, 3),
        torch.randn(1, 6, 6, 3, 3).double(),
        torch.randn(1, 2, 2, 2),
    ],
    ids=["zero", "rank one", "tiny", "a group of zeros", "groups", "double", "smallest"],
)
def test_any_kernel_has_a_curve_that_falls(kernels):
    size = math.prod(kernels.shape[1:])
    curve = cp_curve(kernels, [size // 4, size // 2, size])
    assert all(1 <= rank[0] <= cp_limit(kernels.shape[1:]) for rank, _ in curve)
    assert all(0 <= lost <= 1 for _, lost in curve)
    assert all(later <= earlier for (_, earlier), (_, later) in pairwise(curve))


def test_orthogonal_terms_lose_what_they_say():
    tensor = torch.randn(8, 6, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = OrthogonalTerms(tensor)
    for rank in (1, 10, 40, cp_limit(tensor.shape)):
        dense = torch.einsum("ra,rb,rc,rd->abcd", *terms.rows(rank))
        assert float((tensor - dense).square().sum()) == pytest.approx(float(terms.lost[rank]), abs=1e-9)
