"""Single decompositions of large kernels, each in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tdcompress.decompositions.als import Sweep, start
from tdcompress.decompositions.extrapolation import Run
from tdcompress.decompositions.options import CPOptions
from tdcompress.decompositions.sweeping import Start
from tests.benchmarks.sections import decaying_kernel, true_error
from tests.benchmarks.solvers import OURS, PEERS, measure

_ENDLESS = 1000  # sweeps after which an error that was not reached is not waited for any longer


@dataclass(frozen=True)
class Cost:
    """One decomposition in a process of its own."""

    name: str
    rank: tuple[int, ...]
    error: float
    seconds: float
    megabytes: float  # peak over what the process held before it began


def cost(name: str, method: str, solver: str, shape: Sequence[int], rank: Sequence[int]) -> Cost:
    """What `solver` ("ours" or a peer's name) needs at its defaults."""
    return _in_a_process(name, rank, "_solve", method, solver, tuple(shape), tuple(rank))


def plain(name: str, shape: Sequence[int], rank: int, sweeps: int) -> Cost:
    """What so many sweeps of textbook CP-ALS from a random start need, by our MTTKRPs."""
    return _in_a_process(name, (rank,), "_sweep", tuple(shape), rank, sweeps)


def reach(name: str, shape: Sequence[int], rank: int, kind: Start, error: float) -> Cost:
    """What our CP needs until it is at an error no higher than `error`, the start included."""
    return _in_a_process(name, (rank,), "_reach", tuple(shape), rank, kind, error)


def _in_a_process(name: str, rank: Sequence[int], task: str, *arguments: object) -> Cost:
    return Cost(name, tuple(rank), **in_a_process("costs", task, *arguments))


def in_a_process(module: str, task: str, *arguments: object, limit: float | None = None) -> dict[str, float]:
    """What a function of a module of this package returns in a process that does nothing else.

    Raises:
        subprocess.TimeoutExpired: it took longer than `limit` seconds.
    """
    call = f"{module}.{task}({', '.join(map(repr, arguments))})"
    code = f"import json; from tests.benchmarks import {module}; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=limit)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _solve(method: str, solver: str, shape: Sequence[int], rank: Sequence[int]) -> dict[str, float]:
    run = OURS[method] if solver == "ours" else PEERS[method][solver]
    small = torch.randn(4, 4, 3, 3)
    measure(run, method, small, tuple(1 for _ in rank))  # imports and first-call costs
    kernel = decaying_kernel(shape)
    before = start_of_peak()
    result = measure(run, method, kernel, rank)
    return {"error": result.error, "seconds": result.seconds, "megabytes": peak_megabytes() - before}


def _sweep(shape: Sequence[int], rank: int, sweeps: int) -> dict[str, float]:
    kernel = decaying_kernel(shape)
    before, began = start_of_peak(), time.perf_counter()
    sweep, factors = Sweep(kernel), start("random", kernel, rank, torch.Generator().manual_seed(0))
    for _ in range(sweeps):
        factors, _, _ = sweep(factors)
    seconds, megabytes = time.perf_counter() - began, peak_megabytes() - before
    return {"error": true_error(kernel, factors), "seconds": seconds, "megabytes": megabytes}


def _reach(shape: Sequence[int], rank: int, kind: Start, goal: float) -> dict[str, float]:
    kernel = decaying_kernel(shape)
    kernel = kernel / kernel.abs().max()
    before, began = start_of_peak(), time.perf_counter()
    run = Run(Sweep(kernel, CPOptions().penalty), start(kind, kernel, rank, torch.Generator().manual_seed(0)))
    while float(run.error) > goal and run.sweeps < _ENDLESS:
        run.advance(5, 0.0)
    seconds, megabytes = time.perf_counter() - began, peak_megabytes() - before
    error = true_error(kernel, [rows.float() for rows in run.current])
    return {"error": error, "seconds": seconds, "megabytes": megabytes}


def start_of_peak() -> float:
    """Megabytes held now; the peak starts anew from here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _megabytes("VmRSS")


def peak_megabytes() -> float:
    return _megabytes("VmHWM")


def _megabytes(field: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024
