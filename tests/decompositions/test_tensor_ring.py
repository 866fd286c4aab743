"""Tensor rings against their definition, dense least squares, tensor trains and rings that were put together."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError, CPOptions, TROptions
from tdcompress.decompositions import svd, tensor_ring, tensor_ring_limits, tensor_train
from tdcompress.decompositions.extrapolation import Run
from tdcompress.decompositions.ring_sweep import RingSweep, ring_cores, ring_start
from tdcompress.decompositions.sweeping import Start
from tests.drawing import cases
from tests.tensors import random

SHAPES = [(6, 3, 4), (8, 3, 3, 6), (6, 5), (1, 3, 3, 5), (4, 3, 1), (1, 1, 1), (4, 2, 2, 2, 5), (3, 25, 2)]


def traced(cores):
    """The trace of the product of one slice a core, entry by entry as the definition has it."""
    dense = torch.zeros([core.shape[1] for core in cores], dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(core.shape[1]) for core in cores)):
        product = torch.eye(cores[0].shape[0], dtype=torch.float64)
        for core, index in zip(cores, place, strict=True):
            product = product @ core[:, index]
        dense[tuple(place)] = product.trace()
    return dense


def ring_of(shape, rank, seed=0):
    """Random cores of a rank."""
    bonds = zip(rank, shape, (*rank[1:], rank[0]), strict=True)
    return [random(one, seed + place) for place, one in enumerate(bonds)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_limits_are_exact(shape):
    tensor, limits = random(shape), tensor_ring_limits(shape)
    for rank in (limits, (1, *limits[1:])):
        found = tensor_ring(tensor, rank)
        assert torch.allclose(found.to_dense(), tensor, atol=1e-12)
        assert found.rank == rank


@cases(40)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_result_is_its_cores_and_no_worse_than_the_train_inside(data, seed):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=4))
    tensor = random(shape, seed)
    rank = tuple(data.draw(st.integers(1, limit)) for limit in tensor_ring_limits(shape))
    found, train = (tensor_ring(tensor, one, solver=TROptions(max_iter=60)) for one in (rank, (1, *rank[1:])))
    assert torch.allclose(found.to_dense(), traced(found.cores), atol=1e-10)
    error = float((tensor - traced(found.cores)).norm() / tensor.norm())
    assert found.solution.relative_error == pytest.approx(error, abs=1e-9)
    assert found.solution.relative_error <= train.solution.relative_error + 1e-9


def test_one_slice_is_a_tensor_train_and_a_matrix_its_svd():
    tensor, matrix = random((8, 3, 3, 6)), random((9, 7))
    ours, theirs = tensor_ring(tensor, (1, 4, 5, 3)), tensor_train(tensor, (4, 5, 3))
    assert torch.allclose(ours.to_dense(), theirs.to_dense(), rtol=0, atol=1e-12)
    assert ours.solution.sweeps == theirs.solution.sweeps
    assert tensor_ring(matrix, (1, 4)).solution.relative_error == pytest.approx(svd(matrix, 4).solution.relative_error)


@pytest.mark.parametrize("rank", [(3, 2, 4, 3), (2, 1, 2, 2), (4, 3, 2, 1)])
def test_a_sweep_solves_the_equations_that_are_written_out(rank):
    """The first core alone by a dense least-squares problem, and the error after all of them by the dense tensor."""
    shape = (7, 3, 2, 6)
    tensor, cores = random(shape), ring_of(shape, rank, seed=5)
    sweep = RingSweep(tensor, 0.0)
    chain = torch.einsum("ikj,jlm,moa->aiklo", *cores[1:]).flatten(2).flatten(0, 1)
    best = torch.linalg.lstsq(chain.mT, tensor.flatten(1).mT)
    first, *middle, last = cores
    after, error, length = sweep([first.transpose(1, 2), *middle, last.permute(2, 0, 1)])
    slices = [torch.einsum("ip,ikj,jlm,mo->pklo", *(one[a] if n in (0, 3) else one for n, one in enumerate(after)))
              for a in range(rank[0])]  # fmt: skip
    whole = torch.stack(slices).sum(0)
    distance = (tensor - whole).norm() / tensor.norm()
    assert float(error) == pytest.approx(float(distance), rel=1e-6)
    assert float(length) == pytest.approx(sum(float(one.norm() ** 2) for one in slices) / float(tensor.norm() ** 2))
    assert float(error) <= float((tensor.flatten(1).mT - chain.mT @ best.solution).norm() / tensor.norm()) + 1e-6
    assert torch.allclose(traced(ring_cores(after)), whole, atol=1e-10)


@pytest.mark.parametrize("rank", [(3, 3, 3, 3), (2, 2, 5, 3), (5, 2, 1, 2)])
@pytest.mark.parametrize("kind", ["orthogonal", "random"])
def test_error_and_penalty_never_rise(rank, kind):
    tensor = random((9, 3, 3, 8))
    run, before = Run(RingSweep(tensor, 1e-4), ring_start(kind, tensor, rank, torch.Generator())), math.inf
    for _ in range(50):
        run.advance(1, 0.0)
        assert float(run.loss) <= before * (1 + 1e-10)
        before = float(run.loss)


@pytest.mark.parametrize(
    ("shape", "rank"), [((9, 3, 3, 8), (3, 4, 4, 4)), ((12, 7, 10), (3, 3, 3)), ((5, 9, 9), (4, 2, 2))]
)
def test_the_orthogonal_start_loses_what_its_triples_leave(shape, rank):
    """Its slices are orthogonal to each other and to what is left."""
    tensor = random(shape)
    dense = traced(ring_cores(ring_start("orthogonal", tensor, rank, torch.Generator())))
    assert float((tensor - dense).norm() ** 2 + dense.norm() ** 2) == pytest.approx(float(tensor.norm() ** 2))
    assert dense.norm() > 0.5 * tensor.norm()


@pytest.mark.parametrize("rank", [(3, 2, 2, 2), (2, 3, 3, 3)])
def test_a_ring_is_found_where_a_train_of_as_many_parameters_loses(rank):
    tensor = traced(ring_of((12, 3, 3, 10), rank))
    starts: tuple[Start, ...] = ("orthogonal", *("random",) * 7)
    options = TROptions(penalty=0, tol=0, max_iter=500, starts=starts)
    assert tensor_ring(tensor, rank, solver=options).solution.relative_error < 1e-3
    assert tensor_train(tensor, (4, 4, 4)).solution.relative_error > 0.1


def test_random_starts_are_drawn_from_the_seed():
    tensor, options = random((8, 3, 3, 6)), TROptions(starts=("random",), max_iter=10)

    def solved(seed):
        return tensor_ring(tensor, (3, 3, 3, 3), solver=options, generator=torch.Generator().manual_seed(seed)).cores

    state = torch.random.get_rng_state()
    for one, same, other in zip(solved(1), solved(1), solved(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_best_of_several_starts_goes_on():
    tensor, rank = random((10, 3, 3, 9)), (3, 4, 4, 4)
    kinds: list[tuple[Start, ...]] = [("orthogonal",), ("orthogonal", "random", "random")]
    one, best = (tensor_ring(tensor, rank, solver=TROptions(starts=some, max_iter=30)).solution for some in kinds)
    assert best.relative_error <= one.relative_error + 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_types_and_scales_are_ordinary_input(dtype, scale):
    tensor = (random((8, 3, 3, 6)) * scale).to(dtype)
    found = tensor_ring(tensor, (2, 3, 3, 3))
    assert {core.dtype for core in found.cores} == {dtype}
    assert found.to_dense().isfinite().all()
    assert found.solution.relative_error < 0.8


@pytest.mark.parametrize("shape", [(8, 3, 3, 6), (4, 7, 4)])
def test_degenerate_kernels_are_ordinary_input(shape):
    one = math.prod(
        random([size if i == mode else 1 for i in range(len(shape))], mode) for mode, size in enumerate(shape)
    )
    twice = torch.cat([random(shape)[: shape[0] // 2]] * 2)
    for tensor in (one, twice, one.expand(shape) * 1e-30):
        found = tensor_ring(tensor.float(), (3, *[2] * (len(shape) - 1)))
        assert found.to_dense().isfinite().all()
        assert found.solution.relative_error < 0.9
    assert tensor_ring(one, (3, *[2] * (len(shape) - 1))).solution.relative_error < 1e-3


@pytest.mark.parametrize(
    ("rank", "message"),
    [((2, 2), "has 2 entries, 4 are needed"), ((2, 9, 1, 1), r"largest feasible is \(36, 8, 18, 6\)")],
)
def test_infeasible_ranks_are_refused(rank, message):
    with pytest.raises(CompressionError, match=message):
        tensor_ring(random((8, 3, 3, 6)), rank)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bonds": ()}, "bonds must name one size"),
        ({"bonds": (0,)}, "bonds must be a whole number from 1"),
        ({"starts": ()}, "starts must name"),
        ({"starts": ("warm",)}, "starts must name"),
        ({"orders": "best"}, "orders must be 'all' or 'given'"),
        ({"penalty": -1.0}, "penalty must be a number from 0"),
        ({"max_work": 0}, "max_work must be a number above 0"),
    ],
)
def test_options_are_checked(wrong, message):
    with pytest.raises(CompressionError, match=message):
        TROptions(**wrong)


def test_work_is_bounded_but_for_ten_sweeps():
    assert TROptions(max_work=1.0).sweeps_of((64, 3, 3, 64), (5, 8, 8, 8)) == 10
    assert TROptions(max_work=None).sweeps_of((64, 3, 3, 64), (5, 8, 8, 8)) == 300


@pytest.mark.parametrize("solver", ["tensorly", "fast", CPOptions()])
def test_other_solvers_are_refused(solver):
    with pytest.raises(CompressionError, match=r"leave solver= out|use None, TROptions"):
        tensor_ring(random((4, 3, 2)), (1, 1, 1), solver=solver)
