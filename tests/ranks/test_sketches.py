"""Estimated spectra: right on the mean, and good enough to find a shape that loses hardly more than the best."""

from collections.abc import Callable
from itertools import product

import pytest
import torch

from tdcompress import ranks
from tdcompress.ranks import sketches
from tdcompress.ranks.reshaped import ReshapedRank, Spectra
from tdcompress.ranks.sketches import SketchedSpectra, promising
from tests.drawing import each_once, more
from tests.tensors import random


def kronecker_and_noise(shape):
    rows, columns = shape
    terms = (
        torch.kron(random((rows // 15, columns // 12), seed=2 * n), random((15, 12), seed=2 * n + 1)) for n in range(3)
    )
    return sum(terms) + random(shape, seed=9)


def falling(shape):
    left, _, right = torch.linalg.svd(random(shape), full_matrices=False)
    return left @ torch.diag(torch.arange(1.0, min(shape) + 1, dtype=torch.float64) ** -0.7) @ right


MATRICES = {"random": random, "kronecker": kronecker_and_noise, "falling": falling}
Curve = Callable[..., list[ReshapedRank]]
CURVES: dict[str, Curve] = {"kronecker": ranks.kronecker_curve, "ttm": ranks.ttm_curve, "blr": ranks.blr_curve}


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(sketches, "_SMALL", 0)


@pytest.mark.parametrize(("method", "matrix"), each_once(product(CURVES, MATRICES)))
def test_what_is_chosen_by_estimates_loses_hardly_more_than_the_best_of_all(method, matrix, monkeypatch):
    kernels = MATRICES[matrix]((120, 132) if method == "ttm" else (180, 192))[None]
    budgets = [kernels[0].numel() // part for part in (4, 10)]
    best = CURVES[method](kernels, budgets)
    monkeypatch.setattr(sketches, "_SMALL", 0)
    chosen = CURVES[method](kernels, budgets)
    assert len(chosen) == len(best)
    for one, other in zip(chosen, best, strict=True):
        assert other.lost <= one.lost * (1 + 1e-9)
        assert one.lost**0.5 <= 1.01 * other.lost**0.5


@pytest.mark.parametrize("matrix", ["kronecker", *more("random", "falling")])
def test_where_spectra_are_estimated_a_train_loses_no_more_than_a_sum_of_kronecker_products(matrix, monkeypatch):
    monkeypatch.setattr(sketches, "_SMALL", 0)
    monkeypatch.setattr(sketches, "_ENTRIES", 5 * 160 * 168)  # so that few are looked at
    kernels = MATRICES[matrix]((160, 168) if matrix != "kronecker" else (150, 168))[None]
    budgets = [kernels[0].numel() // part for part in (2, 4, 10)]
    trains, sums = (CURVES[method](kernels, budgets) for method in ("ttm", "kronecker"))
    assert len(trains) == len(sums) == 3
    assert all(train.lost <= one.lost + 1e-12 for train, one in zip(trains, sums, strict=True))


def test_second_moments_are_right_on_the_mean():
    kernels = random((2, 24, 36)) / random((2, 24, 36)).norm()
    sketch = SketchedSpectra(kernels)
    ratios = []
    for shape in ranks.kronecker_shapes((24, 36)):
        matrix = shape.to_tensor(kernels).flatten(3, 4).flatten(1, 2)
        ratios.append(sketch._squares_of_unfolding(shape) / float((matrix @ matrix.mT).square().sum()))
    assert torch.tensor(ratios).mean() == pytest.approx(1, abs=0.05)
    ratios = []
    for shape in ranks.blr_shapes((24, 36)):
        blocks = shape.to_tensor(kernels).flatten(1, 2)
        ratios.append(sketch._squares_of_blocks(shape) / float((blocks @ blocks.mT).square().sum()))
        energies = blocks.square().sum((2, 3)).square().sum()
        assert float(sketch._energies_of_blocks(shape).square().sum()) == pytest.approx(float(energies), rel=1e-5)
    assert torch.tensor(ratios).mean() == pytest.approx(1, abs=0.05)


def test_an_estimated_tail_falls_from_all_to_nothing():
    sketch = SketchedSpectra(random((1, 180, 192)))
    for shape in ranks.kronecker_shapes((180, 192))[::20]:
        tail = sketch.unfolding(shape)
        assert len(tail) == min(shape.sizes) + 1
        assert (tail[0], tail[-1]) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
        assert (tail[1:] <= tail[:-1] + 1e-9).all()


def test_of_few_rows_nothing_is_estimated():
    kernels = random((1, 180, 192))
    spectra, sketch = Spectra(kernels), SketchedSpectra(kernels)
    for shape in [one for one in ranks.kronecker_shapes((180, 192)) if min(one.sizes) <= 32][::8]:
        assert sketch.unfolding(shape) == pytest.approx(spectra.unfolding(shape), abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_scale_makes_no_difference_and_nothing_is_lost_of_nothing(scale, all_are_large):
    kernels = scale * random((1, 48, 64))
    (one,) = ranks.kronecker_curve(kernels, [768])
    (other,) = ranks.kronecker_curve(random((1, 48, 64)), [768])
    assert one.lost == (pytest.approx(other.lost) if scale else 0)
    assert scale == 0 or one.reshape == other.reshape


def test_few_shapes_and_small_matrices_are_not_estimated():
    def never(shape, rank):
        raise AssertionError

    shapes = dict.fromkeys(ranks.kronecker_shapes((48, 64)), 1)
    assert len(promising(shapes, torch.ones(1, 48, 64), never)) == len(shapes)
    some = dict(list(shapes.items())[:5])
    assert len(promising(some, torch.empty(1, 1024, 1024), never)) == 5
    assert len(promising(shapes, torch.empty(1, 1024, 1024), lambda shape, rank: shape.rows[0])) == 16


def test_a_rank_of_a_very_large_unfolding_is_known_without_its_spectrum(monkeypatch):
    kernels = random((1, 60, 64))
    shape = ranks.kronecker_shapes((60, 64), ((6, 10), (8, 8)))[0]
    true = Spectra(kernels).unfolding(shape)
    monkeypatch.setattr("tdcompress.ranks.reshaped._WHOLE", 10)
    spectra = Spectra(kernels)
    assert [spectra.unfolding_at(shape, rank) for rank in (1, 7, 30)] == pytest.approx(true[[1, 7, 30]])
    assert not spectra._unfoldings
