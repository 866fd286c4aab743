"""What it costs to choose by an approximation error: how much worse the choice performs than the best one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tdcompress.correlation.bootstrap import OVER_LAYERS, Array, Bootstrap, as_bootstrap, draws, percentiles
from tdcompress.correlation.table import Groups, Table, grouped
from tdcompress.deprecation import replaced_keywords
from tdcompress.errors import CompressionError


@dataclass(frozen=True)
class Regret:
    """How much worse than the best is what an error chooses, in units of the performance.

    Attributes:
        mean: Mean over the runs of the mean regret of their groups; 0 if the choice is always the best.
        low: Lower end of the 95 % interval of the mean, by bootstrap over whole layers.
        high: Upper end of it; both None where there is one layer, or where the choice is among layers.
        worst: The largest regret of any group.
        right: Share of the groups in which the choice is the best one.
        chance: What `mean` would be for a choice by lot.
        per_run: Mean regret of each run.
        groups: Number of choices that were made, over all runs.
        across: The columns that the choice is among.
    """

    mean: float
    low: float | None
    high: float | None
    worst: float
    right: float
    chance: float
    per_run: dict[Any, float]
    groups: int
    across: tuple[str, ...]

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return (
            f"regret = {self.mean:.4f}{interval}, by lot {self.chance:.4f}, at worst {self.worst:.4f}; right in "
            f"{self.right:.0%} of {self.groups} choices among {' × '.join(self.across)}"
        )


@replaced_keywords(("resamples", "seed"), "bootstrap", lambda old: as_bootstrap(old, "layers"))
def regret(
    table: Table,
    error: str,
    performance: str,
    across: str | Iterable[str] = "method",
    run: str | None = "run",
    *,
    higher_is_better: bool = False,
    bootstrap: Bootstrap = OVER_LAYERS,
) -> Regret:
    """How much worse than the best is the trial that has the least approximation error.

    τ counts pairs; regret weighs them. A wrong order of two trials that perform alike costs nothing, and one that
    picks a bad trial costs what it costs. By default the choice is among methods, for each layer, ratio and run.

    Args:
        table: One row a trial, as `correlate` takes it.
        error: Column of the approximation error; the least is chosen, and of equal ones each with the same chance.
        performance: Column of the performance, such as a classification error.
        across: What is chosen among: one or more of `"layer"`, `"method"`, `"ratio"`.
        run: Column that tells repetitions apart; `None` if the whole table is one run.
        higher_is_better: For a performance such as an accuracy.
        bootstrap: Of the interval; it draws whole layers.

    Raises:
        CompressionError: As `correlate`; or `bootstrap` draws trials, whose choices would lack what they are among.

    Example:
        >>> table = {
        ...     "layer": ["conv1"] * 2 + ["conv2"] * 2, "method": ["cp", "tucker"] * 2, "ratio": [0.5] * 4,
        ...     "relative_weights": [0.2, 0.3, 0.4, 0.1], "test_error": [0.07, 0.09, 0.06, 0.08],
        ... }
        >>> print(regret(table, "relative_weights", "test_error", run=None, across="method"))
        regret = 0.0100 [0.0000, 0.0200], by lot 0.0100, at worst 0.0200; right in 50% of 2 choices among method
    """
    if isinstance(bootstrap, Bootstrap) and bootstrap.unit != "layers":
        raise CompressionError("regret is of whole choices, so its bootstrap draws layers: td.Bootstrap('layers').")
    groups = grouped(table, dict.fromkeys((error, performance)), across, run)
    sign = -1 if higher_is_better else 1
    by_run: dict[Any, list[float]] = defaultdict(list)
    chance: dict[Any, list[float]] = defaultdict(list)
    for label, rows in groups.rows.items():
        errors, excess = groups.columns[error][rows], sign * groups.columns[performance][rows]
        excess = excess - excess.min()
        by_run[groups.run_of(label)].append(float(excess[errors == errors.min()].mean()))
        chance[groups.run_of(label)].append(float(excess.mean()))
    every = np.array([value for values in by_run.values() for value in values])
    per_run = {key: fmean(values) for key, values in by_run.items()}
    low, high = _interval(groups, by_run, bootstrap)
    return Regret(
        mean=fmean(per_run.values()),
        low=low,
        high=high,
        worst=float(every.max()),
        right=float((every == 0).mean()),
        chance=fmean(fmean(values) for values in chance.values()),
        per_run=per_run,
        groups=len(every),
        across=groups.across,
    )


def _interval(
    groups: Groups, by_run: dict[Any, list[float]], bootstrap: Bootstrap
) -> tuple[float | None, float | None]:
    if "layer" in groups.across or groups.layers.max() < 1:
        return None, None
    values: Array = np.array([value for values in by_run.values() for value in values])
    firsts: dict[Any, list[int]] = defaultdict(list)
    for label, rows in groups.rows.items():
        firsts[groups.run_of(label)].append(rows[0])
    order = [row for rows in firsts.values() for row in rows]  # a row of each group, in the order of `values`
    parts = []
    for weights in draws(groups, bootstrap):
        drawn = weights[:, order]
        parts.append((drawn @ values) / drawn.sum(1))
    return percentiles(np.concatenate(parts))
