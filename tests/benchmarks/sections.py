"""What is compared: each section is a list of cases and the table made of them."""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tdcompress.decompositions import cp
from tdcompress.decompositions.algebra import relative_error
from tdcompress.decompositions.als import Sweep, start
from tdcompress.methods import METHODS
from tdcompress.ranks import cp_rule
from tests.benchmarks.solvers import OURS, PEERS, Measurement, measure, measure_ours

PAPER = Path(__file__).parents[2] / "examples" / "paper"
LAYERS = ("conv2", "conv3", "conv4", "conv5", "conv6")
RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Row:
    """One kernel, one method, one budget: a peer beside ours at no more parameters than the peer's."""

    case: str
    method: str
    kept: float
    peer: str
    theirs: Measurement
    ours: Measurement

    @property
    def error_ratio(self) -> float:
        """Ours over theirs."""
        return self.ours.error / self.theirs.error

    @property
    def time_ratio(self) -> float:
        """Theirs over ours."""
        return self.theirs.seconds / self.ours.seconds


def trained_kernels() -> dict[str, Tensor]:
    """The convolutions of GaripovNet, trained on Fashion-MNIST."""
    weights = load_file(PAPER / "checkpoints" / "garipovnet_fmnist.safetensors")
    return {layer: weights[f"{layer}.weight"].float() for layer in LAYERS}


def conv_of(kernel: Tensor) -> nn.Conv2d:
    """A convolution without bias with this kernel."""
    conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], (kernel.shape[2], kernel.shape[3]), bias=False, device="meta")
    conv.weight = nn.Parameter(kernel)
    return conv


def decaying_kernel(shape: Sequence[int], seed: int = 0) -> Tensor:
    """A kernel whose channel unfoldings have singular values that fall as 1/√k, as trained ones roughly do."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(*shape, generator=generator)
    for mode in (0, 1):
        basis, _ = torch.linalg.qr(torch.randn(shape[mode], shape[mode], generator=generator))
        scaled = basis * torch.arange(1, shape[mode] + 1).rsqrt()
        kernel = torch.tensordot(scaled, kernel, dims=([1], [mode])).movedim(0, mode)
    return kernel / kernel.std() * 0.05


def compare(
    case: str, kernel: Tensor, method: str, kept: float, rank: Sequence[int], names: Iterable[str]
) -> Iterator[Row]:
    """Every named peer at `rank`, ours once at the best rank of no more parameters than that."""
    kind = METHODS[method]
    budget = kind.parameters_at(tuple(kernel.shape), tuple(rank))
    ours = measure_ours(method, kernel, budget)
    for name in names:
        yield Row(case, method, kept, name, measure(PEERS[method][name], method, kernel, rank), ours)


def published_tt_ranks() -> dict[tuple[str, float], tuple[int, ...]]:
    """The tensor train's ranks as the paper printed them for GaripovNet."""
    text = (PAPER / "published" / "ranks.csv").read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["model"] == "GaripovNet"]
    return {
        (row["layer"], round(1 - float(row["kept"]), 4)): tuple(int(row[f"tt_rank_{bond}"]) for bond in (1, 2, 3))
        for row in rows
    }


def proportional_tt_rank(shape: Sequence[int], kept: float) -> tuple[int, ...]:
    """Inner ranks that are one share of the feasible ones, the largest share within the budget."""
    limits = METHODS["tt"].full_rank(shape)
    shares = [step / 1000 for step in range(1000, 0, -1)]
    for share in shares:
        rank = [max(1, math.floor(share * limit)) for limit in limits]
        rank[1] = min(rank[1], rank[0] * shape[2])  # rounding must not ask for more than the first bond can carry
        if METHODS["tt"].parameters_at(shape, tuple(rank)) <= kept * math.prod(shape):
            return tuple(rank)
    return tuple(1 for _ in limits)


def peers_at(method: str, layer: str, shape: tuple[int, ...], ratio: float) -> dict[str, tuple[int, ...]]:
    """The rank at which each peer is run: the paper's, and for tensorly's tensor train the proportional one."""
    if method == "tt":
        proportional = proportional_tt_rank(shape, 1 - ratio)
        return {"tensorly-torch": published_tt_ranks()[layer, ratio], "tensorly": proportional}
    return dict.fromkeys(PEERS[method], METHODS[method].tensorly_torch_rank(shape, ratio))


def real_weights(methods: Sequence[str] = tuple(PEERS), layers: Sequence[str] = LAYERS) -> Iterator[Row]:
    """Trained layers × five ratios × methods × peers."""
    kernels = trained_kernels()
    for method, layer, ratio in itertools.product(methods, layers, RATIOS):
        kernel = kernels[layer]
        ranks = peers_at(method, layer, tuple(kernel.shape), ratio)
        for rank in dict.fromkeys(ranks.values()):
            names = [name for name in ranks if ranks[name] == rank]
            yield from compare(layer, kernel, method, round(1 - ratio, 4), rank, names)


# Every 3 × 3 and 1 × 1 convolution of ResNet-18 behind the stem, by its kernel, with how often it occurs.
RESNET18 = {
    (64, 3, 3, 3): 1,
    (64, 64, 3, 3): 4,
    (128, 64, 3, 3): 1,
    (128, 128, 3, 3): 3,
    (128, 64, 1, 1): 1,
    (256, 128, 3, 3): 1,
    (256, 256, 3, 3): 3,
    (256, 128, 1, 1): 1,
    (512, 256, 3, 3): 1,
    (512, 512, 3, 3): 3,
    (512, 256, 1, 1): 1,
}


@dataclass(frozen=True)
class Shape:
    """What one kernel of ResNet-18's shapes cost at a tenth of its parameters."""

    shape: tuple[int, ...]
    count: int
    ours: dict[str, Measurement]
    theirs: dict[str, Measurement]  # tensorly-torch, where it ends within a minute


def resnet_shapes() -> Iterator[Shape]:
    """ResNet-18's kernels with decaying spectra, ratio 0.9, defaults."""
    for shape, count in RESNET18.items():
        kernel = decaying_kernel(shape)
        budget = kernel.numel() // 10
        ours = {method: measure_ours(method, kernel, budget) for method in OURS}
        theirs = {}
        for method in OURS:
            if shape[2:] == (3, 3) and (method != "cp" or kernel.numel() <= 128 * 128 * 9):
                rank = ours[method].rank
                theirs[method] = measure(PEERS[method]["tensorly-torch"], method, kernel, rank)
        yield Shape(shape, count, ours, theirs)


@dataclass(frozen=True)
class Reference:
    """Our defaults beside plain alternating least squares of thousands of sweeps from several random starts."""

    case: str
    rank: int
    ours: float  # relative error
    seconds: float  # processor time, as plain_seconds: they are long runs, and others may want the cores
    plain: tuple[float, ...]  # the error from every start
    plain_seconds: float  # of one start


def plain_als(starts: Mapping[str, int], sweeps: int = 3000) -> Iterator[Reference]:
    """Our CP against patience: every ratio of the named layers, so many random starts for each."""
    kernels = trained_kernels()
    for layer, ratio in itertools.product(starts, RATIOS):
        kernel = kernels[layer]
        (rank,) = cp_rule(tuple(kernel.shape), ratio)
        began = time.process_time()
        ours = cp(kernel, rank).solution.relative_error
        seconds = time.process_time() - began
        ordered = (kernel / kernel.abs().max()).permute(sorted(range(4), key=lambda mode: -kernel.shape[mode]))
        sweep, errors, began = Sweep(ordered), [], time.process_time()
        for seed in range(starts[layer]):
            factors = start("random", ordered, rank, torch.Generator().manual_seed(seed))
            for _ in range(sweeps):
                factors, _, _ = sweep(factors)
            # Not the sweep's own error: unwatched terms of thousands of sweeps cancel to less than its rounding.
            errors.append(true_error(ordered, factors))
        plain_seconds = (time.process_time() - began) / starts[layer]
        yield Reference(f"{layer}, {1 - ratio:.0%} kept", rank, ours, seconds, tuple(errors), plain_seconds)


def true_error(tensor: Tensor, rows: Sequence[Tensor]) -> float:
    """The relative error of a CP decomposition, with nothing taken from its own sums."""
    product = rows[1]
    for factor in rows[2:]:
        product = (product[:, :, None] * factor[:, None, :]).flatten(1)
    return relative_error(tensor, (rows[0].double().mT @ product.double()).view(tensor.shape))
