"""Block terms against CP, Tucker, the SVD and sums that were put together from blocks."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdcompress import CompressionError, CPOptions, TuckerOptions
from tdcompress.decompositions import BTDOptions, block_sweeps, btd, btd_limits, cp, svd, tucker
from tdcompress.decompositions.block_sweeps import BlockSweep, orthogonal_blocks
from tdcompress.decompositions.extrapolation import Run
from tests.drawing import cases
from tests.tensors import random

SHAPES = [(6, 4, 3), (8, 6, 3, 3), (6, 5), (5, 1, 3, 3), (1, 4, 3), (1, 1, 1), (4, 5, 2, 2, 2), (3, 2, 25)]


def summed(found):
    """The sum of the blocks, entry by entry as the definition has it."""
    return torch.einsum("bop,biq,bpq...->oi...", found.left, found.right, found.cores)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_limits_are_exact_together_and_each_alone(shape):
    tensor, (blocks, first, second) = random(shape), btd_limits(shape)
    for rank in ((blocks, first, second), (blocks, 1, 1), (1, first, second)):
        found = btd(tensor, rank)
        assert torch.allclose(found.to_dense(), tensor, atol=1e-12)
        assert found.rank == rank


@cases(60)
@given(data=st.data(), seed=st.integers(0, 99))
def test_the_result_is_its_blocks_and_no_worse_than_its_start(data, seed):
    shape = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    tensor = random(shape, seed)
    rank = tuple(data.draw(st.integers(1, limit)) for limit in btd_limits(shape))
    start, found = (btd(tensor, rank, solver=BTDOptions(max_iter=n, penalty=0)) for n in (0, 60))
    assert torch.allclose(found.to_dense(), summed(found), atol=1e-10)
    error = float((tensor - summed(found)).norm() / tensor.norm())
    assert found.solution.relative_error == pytest.approx(error, abs=1e-9)
    assert found.solution.relative_error <= start.solution.relative_error + 1e-9


@pytest.mark.parametrize("rank", [(4, 1, 1), (3, 2, 2), (3, 2, 3), (2, 3, 1)])
def test_a_sweep_solves_the_equations_that_are_written_out(rank):
    """The first factor, alone by a dense least-squares problem with all blocks' kernels as its columns."""
    tensor = random((7, 6, 5))
    left, right, cores = (
        random((rank[0], *shape), seed) for seed, shape in enumerate([(rank[1], 7), (rank[2], 6), (*rank[1:], 5)])
    )
    columns = torch.einsum("bpqk,bqi->bpik", cores, right).flatten(0, 1).flatten(1)
    best = torch.linalg.lstsq(columns.mT, tensor.flatten(1).mT).solution
    after, error, _ = BlockSweep(tensor, 0.0)([left, right, cores])
    dense = torch.einsum("bpo,bqi,bpqk->oik", *after)
    assert float(error) == pytest.approx(float((tensor - dense).norm() / tensor.norm()), rel=1e-6)
    assert float(error) <= float((tensor - (best.mT @ columns).view(tensor.shape)).norm() / tensor.norm()) + 1e-6


@pytest.mark.parametrize("size", [1, 2, 3])
def test_error_and_penalty_never_rise(size):
    tensor = random((9, 8, 4))
    factors = [random((3, size, 9)), random((3, size, 8), 1), random((3, size, size, 4), 2)]
    run, before = Run(BlockSweep(tensor, 1e-4), factors), math.inf
    for _ in range(50):
        run.advance(1, 0.0)
        assert float(run.loss) <= before * (1 + 1e-12)
        before = float(run.loss)


def test_steps_towards_the_cores_do_what_solving_for_them_does(monkeypatch):
    tensor, rank, steps = random((16, 14, 9)), (4, 3, 2), range(20)
    errors: dict[int, list[float]] = {}
    for most in (10**9, 0):
        monkeypatch.setattr(block_sweeps, "_DIRECT", most)
        run, errors[most] = Run(BlockSweep(tensor, 1e-4), orthogonal_blocks(tensor, rank)), []
        for _ in steps:
            run.advance(1, 0.0)
            errors[most].append(float(run.loss))
        dense = torch.einsum("bpo,bqi,bpqk->oik", *run.current)
        assert float(run.error) == pytest.approx(float((tensor - dense).norm() / tensor.norm()), rel=1e-6)
    assert all(later <= before for before, later in itertools.pairwise(errors[0]))
    assert errors[0] == pytest.approx(errors[10**9], rel=0.01)
    assert errors[0] != errors[10**9]


@pytest.mark.parametrize("size", [1, 2])
def test_a_sum_of_blocks_is_found(size):
    rank = (3, size, size)
    parts = [random((3, 12, size)), random((3, 10, size), 1), random((*rank, 4), 2)]
    tensor = torch.einsum("bop,biq,bpqk->oik", *parts)
    assert btd(tensor, rank, solver=BTDOptions(penalty=0, tol=0)).solution.relative_error < 1e-3


def test_one_block_is_tucker_and_blocks_of_size_1_are_joint_cp():
    tensor = random((12, 10, 3, 3))
    options = TuckerOptions(300)
    assert btd(tensor, (1, 4, 3)).solution.relative_error == pytest.approx(
        tucker(tensor, (4, 3), modes=(0, 1), solver=options).solution.relative_error
    )
    assert btd(tensor, (7, 1, 1)).solution.relative_error == pytest.approx(
        cp(tensor.flatten(2), 7, solver=CPOptions()).solution.relative_error, rel=1e-3
    )


def test_a_matrix_is_its_svd_whatever_the_blocks():
    matrix = random((9, 7))
    for rank in ((4, 1, 1), (2, 2, 2), (2, 2, 3)):
        assert btd(matrix, rank).solution.relative_error == pytest.approx(svd(matrix, 4).solution.relative_error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_types_and_scales_are_ordinary_input(dtype, scale):
    tensor = (random((8, 6, 3, 3)) * scale).to(dtype)
    found = btd(tensor, (4, 2, 2))
    assert found.cores.dtype == found.left.dtype == found.right.dtype == dtype
    assert found.to_dense().isfinite().all()
    assert found.solution.relative_error < 0.8


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (4, 4, 7)])
def test_degenerate_kernels_are_ordinary_input(shape):
    one = math.prod(
        random([size if i == mode else 1 for i in range(len(shape))], mode) for mode, size in enumerate(shape)
    )
    twice = torch.cat([random(shape)[: shape[0] // 2]] * 2)
    for tensor in (one, twice, one.expand(shape) * 1e-30):
        found = btd(tensor.float(), (3, 2, 2))
        assert found.to_dense().isfinite().all()
        assert found.solution.relative_error < 0.9
    assert btd(one, (3, 2, 2)).solution.relative_error < 1e-3


@pytest.mark.parametrize(
    ("rank", "message"),
    [((2, 2), "has 2 entries, 3 are needed"), ((2, 9, 1), r"largest feasible is \(48, 8, 6\)")],
)
def test_infeasible_ranks_are_refused(rank, message):
    with pytest.raises(CompressionError, match=message):
        btd(random((8, 6, 3, 3)), rank)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": ()}, "sizes must name one size"),
        ({"size_tol": -0.1}, "size_tol must be a number from 0"),
        ({"sizes": (0,)}, "sizes must be a whole number from 1"),
        ({"penalty": -1.0}, "penalty must be a number from 0"),
        ({"max_work": 0}, "max_work must be a number above 0"),
    ],
)
def test_options_are_checked(wrong, message):
    with pytest.raises(CompressionError, match=message):
        BTDOptions(**wrong)


def test_work_is_bounded_but_for_ten_sweeps():
    assert BTDOptions(max_work=1.0).sweeps_of((64, 64, 9), (20, 2, 2)) == 10
    assert BTDOptions(max_work=None).sweeps_of((64, 64, 9), (20, 2, 2)) == 300


@pytest.mark.parametrize("solver", ["tensorly", "fast", CPOptions()])
def test_other_solvers_are_refused(solver):
    with pytest.raises(CompressionError, match=r"leave solver= out|use None, BTDOptions"):
        btd(random((4, 3, 2)), (1, 1, 1), solver=solver)
