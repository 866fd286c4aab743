"""The methods for linear layers: error, parameters, multiply-adds and the time of a forward."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tdcompress as td
from tdcompress.decompositions import ttm
from tdcompress.decompositions.bridge import tensorly_on_torch
from tdcompress.layers.reshaped import ReshapedConv
from tdcompress.methods import METHODS, taking
from tdcompress.ranks.ttm_costs import is_cheaper_from_last
from tdcompress.report.measuring import count_multiply_adds
from tests.benchmarks.forward import THREADS, Forward, run_of, timed, wall
from tests.benchmarks.sections import decaying_kernel
from tests.benchmarks.tables import Table

SHAPES = ((512, 512), (3072, 768))  # out, in
RATIOS = (0.5, 0.75, 0.9)
ROWS, ROUNDS = 1024, 15
PEER = "ttm, tensorly-torch"


@dataclass(frozen=True)
class Linear:
    """One layer and ratio.

    Attributes:
        shape: (out, in).
        ratio: the share of the parameters to remove.
        costs: by name the rank, relative weight error, parameters, and multiply-adds of a row of inputs.
        forward: times, the dense layer's among them.
    """

    shape: tuple[int, int]
    ratio: float
    costs: dict[str, tuple[str, float, int, int]]
    forward: Forward


def linear_tables(quick: bool) -> Iterator[Table]:
    """One table."""
    cases = itertools.product(SHAPES[:1] if quick else SHAPES, RATIOS[:1] if quick else RATIOS)
    rows = [measured(shape, ratio, 3 if quick else ROUNDS) for shape, ratio in cases]
    yield _as_table(rows)


def measured(shape: tuple[int, int], ratio: float, rounds: int) -> Linear:
    """Every method that takes a linear layer, and tensorly-torch's at the shape and rank of our tensor train."""
    torch.set_num_threads(THREADS)
    dense = nn.Linear(shape[1], shape[0])
    dense.weight = nn.Parameter(decaying_matrix(shape))
    layers = {method: METHODS[method].from_conv(dense, ratio=ratio) for method in taking(td.ConvSpec.of(dense))}
    costs = {}
    for name, layer in layers.items():
        assert layer.solution is not None
        cost = sum(stage.weight.numel() for stage in layer.weighted)
        costs[name] = (_shown(layer), layer.solution.relative_error, cost, multiply_adds(layer, shape[1]))
    models: dict[str, nn.Module] = {"dense": dense, **layers}
    if "ttm" in layers:
        train = layers["ttm"]
        peer: Any = block_tt(train)
        rows, columns = train.axes[:2]
        theirs = ttm(dense.weight.detach(), train.ranks, (rows, columns), solver="tensorly").solution.relative_error
        cost = sum(core.numel() for core in peer.weight.factors)
        costs[PEER] = (costs["ttm"][0], theirs, cost, multiply_adds(peer, shape[1]))
        models[PEER] = peer
    x = torch.randn(ROWS, shape[1])
    runs = {name: run_of(model.eval(), x) for name, model in models.items()}
    return Linear(shape, ratio, costs, Forward(shape[0], 1, round(1 - ratio, 4), "", timed(runs, wall, rounds)))


def decaying_matrix(shape: tuple[int, int]) -> Tensor:
    """A matrix with singular values that fall about as 1/k, between random bases."""
    return decaying_kernel((*shape, 1, 1)).view(shape)


def multiply_adds(layer: nn.Module, inputs: int) -> int:
    """Of one row of inputs."""
    with torch.inference_mode(), tensorly_on_torch():
        return count_multiply_adds(lambda: layer(torch.zeros(1, inputs)))


def block_tt(train: td.FactorizedConv) -> nn.Module:
    """tensorly-torch's layer with cores of the same shapes, its "factorized" implementation.

    It multiplies by the first core first, whatever that costs, so the cores are turned round where ours begin at the
    last.
    """
    rows, columns, _ = train.axes
    rank = (1, *train.ranks, 1)
    if is_cheaper_from_last(td.Reshape(rows, columns), train.ranks):
        rows, columns, rank = rows[::-1], columns[::-1], rank[::-1]
    with warnings.catch_warnings(), tensorly_on_torch():
        warnings.simplefilter("ignore")  # its own deprecations
        import tltorch

        layer = tltorch.FactorizedLinear(
            columns,
            rows,
            factorization="blocktt",
            rank=rank,
            implementation="factorized",
        )
        layer.reset_parameters()
    return layer


def _shown(layer: td.FactorizedConv) -> str:
    """Rank and shape."""
    rank = "×".join(map(str, layer.ranks))
    if not isinstance(layer, ReshapedConv):
        return rank
    rows, columns = ("·".join(map(str, side)) for side in layer.axes[:2])
    return f"{rank} of {rows} × {columns}"


def _as_table(rows: list[Linear]) -> Table:
    cells = []
    for row in rows:
        out, inner = row.shape
        for name, (rank, error, parameters, products) in row.costs.items():
            kept, work = parameters / (out * inner), products / (out * inner)
            faster, time = row.forward.speedup(name), row.forward.median(name)
            numbers = [f"{error:.4f}", f"{kept:.1%}", f"{work:.1%}", f"{time:.3g} ms", f"{faster:.2f}"]
            cells.append([f"{inner} → {out}", f"{1 - row.ratio:.0%}", name, rank, *numbers])
    note = (
        f"Weights with decaying spectra between random bases, {ROWS} rows of inputs, {THREADS} threads. Parameters and "
        "multiply-adds in shares of the dense layer's; the last column is how many times faster than the dense layer. "
        f"`{PEER}` has the cores of our train, the cheaper end first: the error is that of tensorly's TT-SVD, the "
        "time that of tensorly-torch's `BlockTT`."
    )
    titles = ["layer", "kept", "method", "rank", "error", "parameters", "multiply-adds", "time", "over dense"]
    return note, titles, cells
