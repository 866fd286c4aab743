"""A plan for ResNet-18 in a process of its own, and what models take that were planned for speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

import tdcompress as td
from examples.paper.models import GaripovNet, resnet18, seeded
from tests.benchmarks.costs import in_a_process, peak_megabytes, start_of_peak

BATCH = 16
_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "GaripovNet": (lambda: GaripovNet(in_channels=1), (BATCH, 1, 28, 28)),
    "ResNet-18": (lambda: resnet18(in_channels=3), (BATCH, 3, 32, 32)),
}


def planning_tables(quick: bool) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A sentence, titles and cells of each table."""
    note = (
        "Planning all layers by all methods, in a process of its own; random weights. With data, trial compressions "
        "and their effect on the output are part of it."
    )
    cases = [("GaripovNet", 0), ("GaripovNet", 256), *([] if quick else [("ResNet-18", 0)])]
    cells = []
    for name, samples in cases:
        cost = in_a_process("planning", "plan", name, 0.75, samples)
        given = f"{samples} inputs as data" if samples else "weights alone"
        cells.append([name, given, f"{cost['seconds']:.0f} s", f"{cost['megabytes']:.0f} MB"])
    yield note, ["network", "from", "time", "peak memory over the model"], cells
    note = (
        "`td.compress(…, objective='latency')`: forwards of the whole model, dense and compressed in turn, after "
        "planning; batch 16, channels last. Every layer that is not faster stays dense."
    )
    cells = [list(_fast("GaripovNet", ratio)) for ratio in (0.25, 0.5)]
    yield note, ["network", "latency to remove", "layers changed", "dense", "compressed"], cells


def plan(name: str, ratio: float, samples: int) -> dict[str, float]:
    """Seconds and megabytes of one plan, in this process."""
    build, shape = _NETWORKS[name]
    model = seeded(build, 0).eval()
    data = list(torch.randn(samples, *shape[1:]).split(BATCH)) if samples else None
    td.plan(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten()), 0.5)  # imports and first-call costs
    before, began = start_of_peak(), time.perf_counter()
    planned = td.plan(model, ratio, data=data)
    seconds = time.perf_counter() - began
    assert planned.cost[1] <= planned.budget
    return {"seconds": seconds, "megabytes": peak_megabytes() - before}


def _fast(name: str, ratio: float) -> Iterator[str]:
    build, shape = _NETWORKS[name]
    model = seeded(build, 0).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    yield from (name, f"{ratio:.0%}")
    try:
        small = td.compress(model, ratio, objective="latency", example_inputs=x)
    except td.CompressionError as error:
        yield from (f"refused: {error}", "", "")
        return
    changed = [module for module in small.modules() if isinstance(module, td.FactorizedConv)]
    costs = td.report(small, x).total
    assert costs.milliseconds is not None
    before, after = costs.milliseconds
    yield from (str(len(changed)), f"{before:.2f} ms", f"{after:.2f} ms")
