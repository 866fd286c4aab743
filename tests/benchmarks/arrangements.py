"""CP with a stage for every spatial axis, with one for all of them, and the better of both, on the trained layers."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import tdcompress as td
from tests.benchmarks.sections import LAYERS, RATIOS, conv_of, trained_kernels

WAYS: tuple[Literal["separable", "joint", "best"], ...] = ("separable", "joint", "best")


@dataclass(frozen=True)
class Case:
    """One layer and ratio: error and processor time of every way.

    Attributes:
        layer: its name.
        kept: the share of the parameters.
        errors: by what `CPOptions(spatial=…)` is told.
        seconds: by the same, of all that `decompose` does.
        chosen: the arrangement that `"best"` took.
    """

    layer: str
    kept: float
    errors: Mapping[str, float]
    seconds: Mapping[str, float]
    chosen: str


def arrangements(layers: Sequence[str] = LAYERS) -> Iterator[Case]:
    """Every layer at every ratio."""
    kernels = trained_kernels()
    for layer, ratio in itertools.product(layers, RATIOS):
        errors: dict[str, float] = {}
        seconds: dict[str, float] = {}
        chosen = ""
        for way in WAYS:
            began = time.process_time()
            found = td.CPConv.from_conv(conv_of(kernels[layer]), ratio=ratio, solver=td.CPOptions(spatial=way))
            seconds[way] = time.process_time() - began
            assert found.solution is not None
            errors[way] = found.solution.relative_error
            chosen = "joint" if len(found.axes) == 1 else "separable"
        yield Case(layer, round(1 - ratio, 4), errors, seconds, chosen)


def arrangement_table(cases: Sequence[Case]) -> tuple[list[str], list[list[str]]]:
    """Titles and cells: every case, and their sum."""
    titles = ["layer", "kept", *(f"`{way}`" for way in WAYS), "chosen", *(f"time, `{way}`" for way in WAYS)]
    cells = []
    for case in cases:
        errors = [f"{case.errors[way]:.4f}" for way in WAYS]
        seconds = [f"{case.seconds[way]:.2f} s" for way in WAYS]
        cells.append([case.layer, f"{case.kept:.0%}", *errors, case.chosen, *seconds])
    means = [statistics.geometric_mean(case.errors[way] for case in cases) for way in WAYS]
    totals = [sum(case.seconds[way] for case in cases) for way in WAYS]
    cells.append(["geometric mean, sum", "", *(f"{one:.4f}" for one in means), "", *(f"{one:.1f} s" for one in totals)])
    return titles, cells
