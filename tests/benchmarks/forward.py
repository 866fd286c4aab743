"""How long a forward pass takes: the dense layer, ours and tensorly-torch's factorized one, in turn, in one run."""

from __future__ import annotations

import itertools
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import tdcompress as td
from tdcompress.decompositions.bridge import tensorly_on_torch
from tdcompress.methods import METHODS, taking
from tests.benchmarks.sections import decaying_kernel
from tests.benchmarks.solvers import PEERS as SOLVERS
from tests.benchmarks.tables import Table

LAYERS = ((128, 28), (512, 7))  # channels, height and width
RATIOS = (0.5, 0.75, 0.9)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
BATCH, THREADS, ROUNDS = 32, 2, 41
PEERS = {method: f"{method}, tensorly-torch" for method in SOLVERS}  # the methods that it has, too
FLOOR = 8  # channels between two 1×1 convolutions with next to nothing in between: what reading and writing costs
WHAT = "how many times faster; over tensorly-torch the geometric mean and the least of all cases, else the least."


@dataclass(frozen=True)
class Forward:
    """One layer, ratio and setting: the milliseconds of every candidate in every round."""

    channels: int
    size: int
    kept: float
    setting: str
    rounds: Mapping[str, Sequence[float]]

    @property
    def layer(self) -> str:
        """As the tables call it."""
        return f"{self.channels}×{self.channels} at {self.size}²"

    def median(self, name: str) -> float:
        """The median milliseconds of one candidate."""
        return statistics.median(self.rounds[name])

    def speedup(self, ours: str, other: str = "dense") -> float:
        """How many times faster `ours` is than `other`: the median over the rounds, each of which ran both."""
        pairs = zip(self.rounds[other], self.rounds[ours], strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)


def forward_tables(quick: bool) -> Iterator[Table]:
    """The tables of the section: the CPU, and a GPU where there is one."""
    rows = list(on_the_cpu(quick, candidates))
    yield f"**CPU**: median milliseconds, batch {BATCH}, {THREADS} threads.", *_times(rows)
    yield f"**CPU**: {WHAT}", *_speedups(rows)
    if torch.cuda.is_available():
        rows = list(on_a_gpu(quick))
        device = torch.cuda.get_device_name()
        yield f"**{device}**: median milliseconds, batch {BATCH}, channels last.", *_times(rows)
        yield f"**{device}**: {WHAT}", *_speedups(rows)


def on_the_cpu(
    quick: bool, candidates: Callable[[int, float], Mapping[str, nn.Module]], rounds: int = ROUNDS
) -> Iterator[Forward]:
    """Both memory formats, two threads; the candidates by channels and ratio."""
    torch.set_num_threads(THREADS)
    for (channels, size), ratio in _cases(quick):
        models = candidates(channels, ratio)
        for layout, memory_format in LAYOUTS.items():
            x = torch.randn(BATCH, channels, size, size).to(memory_format=memory_format)
            runs = {name: run_of(_laid_out(model, memory_format), x) for name, model in models.items()}
            yield Forward(channels, size, round(1 - ratio, 4), layout, timed(runs, wall, 3 if quick else rounds))


def on_a_gpu(quick: bool) -> Iterator[Forward]:
    """Two dtypes, with and without torch.compile and CUDA graphs."""
    for ((channels, size), ratio), dtype in itertools.product(_cases(quick), (torch.float32, torch.bfloat16)):
        models = candidates(channels, ratio)
        x = torch.randn(BATCH, channels, size, size, device="cuda", dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        placed = {name: _laid_out(model.to(x.device, dtype)) for name, model in models.items()}
        for how, prepare in HOW.items():
            # torch.compile(fullgraph=True) fails on every layer of tensorly-torch.
            names = [name for name in placed if "compiled" not in how or name not in PEERS.values()]
            runs = {name: prepare(placed[name], x) for name in names}
            setting = f"{str(dtype).removeprefix('torch.')}, {how}"
            yield Forward(channels, size, round(1 - ratio, 4), setting, timed(runs, _events, 3 if quick else ROUNDS))


def _laid_out(model: nn.Module, memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    return model.to(memory_format=memory_format)  # type: ignore[call-overload]


def _cases(quick: bool) -> list[tuple[tuple[int, int], float]]:
    return list(itertools.product(LAYERS, RATIOS))[: 1 if quick else None]


def candidates(channels: int, ratio: float) -> dict[str, nn.Module]:
    """The dense layer, every method of ours, CP merged, tensorly-torch's at our ranks, and the floor of a stack.

    The time of a layer depends on its ranks, not on how well it was solved for, so ours are solved for as for a plan.
    Without any sweep the ring would be no ring: some are needed to see that it loses less than the train.
    """
    dense = nn.Conv2d(channels, channels, 3, padding=1)
    dense.weight = nn.Parameter(decaying_kernel(dense.weight.shape))
    ours: dict[str, td.FactorizedConv] = {}
    for method in taking(td.ConvSpec.of(dense)):
        kind = METHODS[method]
        ours[method] = kind.from_conv(dense, ratio=ratio, solver=kind.quick(kind.options()))
    cp = ours["cp"]
    assert isinstance(cp, td.CPConv)
    models: dict[str, nn.Module] = {"dense": dense, **ours, "cp merged": cp.merge_spatial()}
    models["floor"] = nn.Sequential(nn.Conv2d(channels, FLOOR, 1), nn.Conv2d(FLOOR, channels, 1))
    for method, peer in PEERS.items():
        models[peer] = tensorly_torch(dense, method, ours[method].ranks)
    return {name: model.eval() for name, model in models.items()}


def tensorly_torch(dense: nn.Conv2d, method: str, ranks: Sequence[int]) -> nn.Module:
    """tensorly-torch's layer at the same ranks, its "factorized" implementation."""
    shape = tuple(dense.kernel_size)
    rank = {"cp": ranks[0], "tucker": (*ranks, *shape), "tt": (1, *ranks, 1)}[method]
    with warnings.catch_warnings(), tensorly_on_torch():
        warnings.simplefilter("ignore")  # its own deprecations
        import tltorch

        layer = tltorch.FactorizedConv(
            dense.in_channels,
            dense.out_channels,
            shape,
            padding=1,
            bias=True,
            factorization=method,
            rank=rank,
            implementation="factorized",
        )
        layer.reset_parameters()
        nn.init.zeros_(layer.bias)
    return layer


def run_of(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """A forward."""
    return lambda: model(x)


def _compiled(model: nn.Module, x: Tensor, mode: str | None = None) -> Callable[[], Tensor]:
    return run_of(torch.compile(model, fullgraph=True, mode=mode), x)


def _graphed(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """The launches recorded once and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):  # what is set up in a first call must not be recorded
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        model(x)
    return graph.replay


HOW: dict[str, Callable[[nn.Module, Tensor], Callable[[], object]]] = {
    "eager": run_of,
    "CUDA graph": _graphed,
    "compiled": _compiled,
    "compiled, CUDA graph": lambda model, x: _compiled(model, x, "reduce-overhead"),
}


def timed(
    runs: Mapping[str, Callable[[], object]], stopwatch: Callable[[Callable[[], object]], float], rounds: int
) -> dict[str, list[float]]:
    """The milliseconds of each, all in every round and in a new order, so that what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffler = list(runs), random.Random(0)
    with torch.inference_mode(), tensorly_on_torch():
        for run in [*runs.values()] * 2:
            run()
        for _ in range(rounds):
            shuffler.shuffle(order)
            for name in order:
                times[name].append(stopwatch(runs[name]))
    return times


def wall(run: Callable[[], object]) -> float:
    """Milliseconds by the clock."""
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


def _events(run: Callable[[], object], repeats: int = 20) -> float:
    """On a GPU one call is over before its launch is."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def _times(rows: Sequence[Forward]) -> tuple[list[str], list[list[str]]]:
    """Every case; tensorly-torch → ours where there are both."""
    alone = [name for name in _ours(rows) if name not in PEERS]
    titles = ["layer", "kept", "setting", "dense", *(f"{m}: tensorly-torch → ours" for m in PEERS), *alone]
    cells = []
    for row in rows:
        shown = {name: f"{row.median(name):.3g}" for name in row.rounds}
        pairs = [f"{shown.get(peer, '-')} → {shown[method]}" for method, peer in PEERS.items()]
        line = [row.layer, f"{row.kept:.0%}", row.setting, shown["dense"], *pairs]
        cells.append(line + [shown[name] for name in alone])
    return titles, cells


def _speedups(rows: Sequence[Forward]) -> tuple[list[str], list[list[str]]]:
    """For every setting and method: over tensorly-torch, and over the dense layer by what is kept."""
    shares = sorted({row.kept for row in rows}, reverse=True)
    over = list(itertools.product(("dense", "cp"), shares))
    titles = ["setting", "method", "over tensorly-torch, mean", "least"]
    titles += [f"over {other}, {share:.0%} kept" for other, share in over]
    cells = []
    for setting, name in itertools.product(dict.fromkeys(row.setting for row in rows), _ours(rows)):
        chosen = [row for row in rows if row.setting == setting]
        least = [min(row.speedup(name, other) for row in chosen if row.kept == share) for other, share in over]
        over_peer = _over_peer(chosen, [name])
        cells.append([setting, name, *_mean_and_least(over_peer), *(f"{value:.2f}" for value in least)])
    for names in (list(PEERS), [name.replace("cp", "cp merged") for name in PEERS]):
        over_peer = _over_peer(rows, names)
        cells.append(["all", ", ".join(names), *_mean_and_least(over_peer), *("" for _ in over)])
    return titles, cells


def _ours(rows: Sequence[Forward]) -> list[str]:
    return [name for name in rows[0].rounds if name not in ("dense", *PEERS.values())]


def _over_peer(rows: Sequence[Forward], names: Sequence[str]) -> list[float]:
    """Every case in which tensorly-torch ran beside these."""
    pairs = [(name, PEERS.get(name.removesuffix(" merged"), "")) for name in names]
    return [row.speedup(name, peer) for row in rows for name, peer in pairs if peer in row.rounds]


def _mean_and_least(ratios: Sequence[float]) -> list[str]:
    return [f"{statistics.geometric_mean(ratios):.2f}", f"{min(ratios):.2f}"] if ratios else ["-", "-"]
