"""All methods for convolutions beside each other: errors on the trained kernels at equal parameters."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import tdcompress as td
from tdcompress.decompositions import Options
from tdcompress.methods import METHODS, taking
from tests.benchmarks.sections import LAYERS, RATIOS, conv_of, trained_kernels
from tests.benchmarks.tables import Table

BESIDE = "cp, joint"  # what the others are compared with
SHARES = tuple(sorted((round(1 - ratio, 4) for ratio in RATIOS), reverse=True))


@dataclass(frozen=True)
class Approximation:
    """One kernel by one way under one budget.

    Attributes:
        way: the method, or a method with options.
        layer: the kernel's layer.
        kept: the share of its parameters that may be kept.
        error: relative weight error; None where no rank is small enough.
        seconds: processor time of all that `from_conv` does.
    """

    way: str
    layer: str
    kept: float
    error: float | None
    seconds: float


def convolution_ways() -> dict[str, tuple[str, Options | None]]:
    """The methods that take convolutions at their defaults, and CP with a joint spatial factor."""
    spec = td.ConvSpec(64, 64, (3, 3), (1, 1), (1, 1), (1, 1))
    ways: dict[str, tuple[str, Options | None]] = {BESIDE: ("cp", td.CPOptions(spatial="joint"))}
    return ways | {method: (method, None) for method in taking(spec)}


def approximations(ways: Mapping[str, tuple[str, Options | None]], layer: str, kept: float) -> Iterator[Approximation]:
    """One trained kernel under one budget, every way."""
    conv = conv_of(trained_kernels()[layer])
    for way, (method, options) in ways.items():
        began = time.process_time()
        try:
            stack = METHODS[method].from_conv(conv, ratio=round(1 - kept, 4), solver=options)
            assert stack.solution is not None
            error = stack.solution.relative_error
        except td.CompressionError:  # the budget is too small
            error = None
        yield Approximation(way, layer, kept, error, time.process_time() - began)


def all_approximations(
    ways: Mapping[str, tuple[str, Options | None]], shares: Sequence[float], quick: bool
) -> Iterator[Approximation]:
    """All trained kernels with these shares kept."""
    for kept in shares[-1:] if quick else shares:
        for layer in LAYERS[:1] if quick else LAYERS:
            yield from approximations(ways, layer, kept)


def methods_tables(quick: bool) -> Iterator[Table]:
    """The summary, and every case."""
    rows = list(all_approximations(convolution_ways(), SHARES, quick))
    yield means(rows)
    yield cases(rows)


def means(rows: list[Approximation]) -> Table:
    """Errors over those of CP with a joint spatial factor: geometric means."""
    beside = {(row.layer, row.kept): row.error for row in rows if row.way == BESIDE}
    shares = sorted({row.kept for row in rows}, reverse=True)
    cells = []
    for way in dict.fromkeys(row.way for row in rows):
        own = [row for row in rows if row.way == way]
        groups = [[row for row in own if row.kept == kept] for kept in shares]
        ratios = [_over(group, beside) for group in [*groups, own]]
        cells.append([way, *ratios, f"{sum(row.seconds for row in own):.0f} s"])
    note = (
        f"Relative weight errors over those of `{BESIDE}` at the same budget, geometric means over the layers; "
        "processor time of all cases. A dash: no rank is small enough for one of the layers."
    )
    return note, ["method", *(f"{kept:.0%} kept" for kept in shares), "all", "time"], cells


def _over(rows: list[Approximation], beside: Mapping[tuple[str, float], float | None]) -> str:
    errors = [(row.error, beside[row.layer, row.kept]) for row in rows]
    ratios = [mine / theirs for mine, theirs in errors if mine is not None and theirs is not None]
    return f"{statistics.geometric_mean(ratios):.4f}" if len(ratios) == len(rows) else "-"


def cases(rows: list[Approximation]) -> Table:
    """Every layer and budget: relative weight errors."""
    ways = list(dict.fromkeys(row.way for row in rows))
    errors = {(row.layer, row.kept, row.way): "-" if row.error is None else f"{row.error:.4f}" for row in rows}
    places = sorted({(row.layer, row.kept) for row in rows}, key=lambda place: (place[0], -place[1]))
    cells = [[layer, f"{kept:.0%}", *(errors[layer, kept, way] for way in ways)] for layer, kept in places]
    return "Relative weight errors.", ["layer", "kept", *ways], cells
