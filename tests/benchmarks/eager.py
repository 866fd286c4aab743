"""What it gains that a stack on a CPU does not run stage by stage: both in turn, in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tests.benchmarks.forward import BATCH, LAYERS, PEERS, ROUNDS, THREADS, candidates, run_of, timed, wall
from tests.benchmarks.tables import Table

KEPT = 0.25


def eager_tables(quick: bool) -> Iterator[Table]:
    """A row a layer and way to run it, a column a method: milliseconds stage by stage → as it is."""
    torch.set_num_threads(THREADS)
    rows, methods = [], []
    for channels, size in LAYERS[: 1 if quick else None]:
        models = candidates(channels, 1 - KEPT)
        methods = [name for name in models if name not in (*PEERS.values(), "dense", "svd", "cp merged", "floor")]
        x = torch.randn(BATCH, channels, size, size)
        for what, run in WAYS.items():
            runs: dict[str, Callable[[], object]] = {}
            for name in methods:
                stages = nn.Sequential(*models[name].children())
                runs[name], runs[f"{name}, stages"] = run(models[name], x), run(stages, x)
            times = timed(runs, wall, 3 if quick else ROUNDS // 2)
            rows.append([f"{channels}×{channels} at {size}²", what, *(_both(times, name) for name in methods)])
    yield (
        f"Median milliseconds, stage by stage → as it is, {KEPT:.0%} kept, batch {BATCH}.",
        ["layer", "", *methods],
        rows,
    )


def _both(times: Mapping[str, list[float]], name: str) -> str:
    return " → ".join(f"{statistics.median(times[which]):.3g}" for which in (f"{name}, stages", name))


def _channels_last(model: nn.Module, x: Tensor) -> Callable[[], object]:
    return run_of(model, x.to(memory_format=torch.channels_last))


def _bfloat16(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    return run


def _training(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            model(x.clone().requires_grad_()).sum().backward()

    return run


WAYS: dict[str, Callable[[nn.Module, Tensor], Callable[[], object]]] = {
    "contiguous": run_of,
    "channels last": _channels_last,
    "contiguous, bfloat16": _bfloat16,
    "contiguous, with gradients": _training,
}
