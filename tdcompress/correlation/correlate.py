"""Kendall's τ in a table of trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

from tdcompress.correlation.bootstrap import Bootstrap, as_bootstrap, percentiles, resampled
from tdcompress.correlation.table import VARIED, Groups, Table, grouped
from tdcompress.correlation.tau import Variant, check_variant, tau_alone
from tdcompress.deprecation import replaced_keywords
from tdcompress.errors import CompressionError


@dataclass(frozen=True)
class Correlation:
    """Kendall's τ in a table of trials: computed in each group, averaged per run, then over the runs.

    Attributes:
        mean: Mean of the runs' τ.
        std: Their population standard deviation; 0 when there is one run.
        per_run: τ of each run, in the table's order; the key is `None` where `run=None`.
        groups: Number of groups in a run; the fewest, if runs differ.
        n: Rows in a group; the fewest, if groups differ, because the smallest group is the noisiest.
        across: The columns that vary within a group.
        variant: `"a"` or `"b"`.
        groups_max: The most groups in a run; equals `groups` in a complete grid.
        n_max: The most rows in a group; equals `n` in a complete grid.
        low: Lower end of the 95 % bootstrap interval of the mean; None if none was asked for.
        high: Upper end of it.
    """

    mean: float
    std: float
    per_run: dict[Any, float]
    groups: int
    n: int
    across: tuple[str, ...]
    variant: Variant
    groups_max: int
    n_max: int
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        runs = f"± {self.std:.3f} over {len(self.per_run)} runs" if len(self.per_run) > 1 else "in one run"
        groups = f"{self.groups}" if self.groups == self.groups_max else f"{self.groups} to {self.groups_max}"
        rows = f"{self.n}" if self.n == self.n_max else f"{self.n} to {self.n_max}"
        size = f"n = {rows}" if groups == "1" else f"{groups} groups of n = {rows} per run"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"τ-{self.variant} = {self.mean:.3f}{interval} {runs}, across {' × '.join(self.across)}, {size}"


def _as_bootstrap(old: Mapping[str, Any]) -> Bootstrap | None:
    """`interval=` said what is drawn, or None for no interval."""
    unit = old.get("interval")
    others = {name: value for name, value in old.items() if name != "interval"}
    return None if unit is None else as_bootstrap(others, unit)


@replaced_keywords(("interval", "resamples", "seed"), "bootstrap", _as_bootstrap)
def correlate(
    table: Table,
    error: str,
    performance: str,
    across: str | Iterable[str] = VARIED,
    run: str | None = "run",
    variant: Variant = "a",
    *,
    bootstrap: Bootstrap | None = None,
) -> Correlation:
    """Kendall's τ between two columns of a table of trials, per run, across layers, methods and/or ratios.

    Within each run, the rows that agree on those of `layer`, `method` and `ratio` that `across` does not
    name form a group; the run's τ is the plain mean of its groups' τ. So `across="layer"` asks whether
    the error ranks layers once method and ratio are settled; the default ranks all trials together. No
    sign is changed: a good predictor has τ near 1 with a test error and near −1 with an accuracy.

    Args:
        table: One row a trial, with the columns `layer`, `method`, `ratio` and those named below: a DataFrame
            (never modified), a dict of columns, a list of rows as dicts, or the path of a CSV file.
        error: Column of the approximation error.
        performance: Column of the performance.
        across: What varies within a group: one or more of `"layer"`, `"method"`, `"ratio"`.
        run: Column that tells repetitions apart; `None` if the whole table is one run.
        variant: `"a"`, as in the paper, or `"b"`; see `kendall_tau`.
        bootstrap: What is drawn anew for an interval of the mean, and how often; None for no interval.

    Raises:
        CompressionError: If the table is empty or cannot be read, a column or a key is missing, a value is
            not a finite number, a trial occurs twice, a group has one row, or its τ-b is undefined.
        ImportError: If pandas, of the extra `study`, is not installed.

    Example:
        >>> table = {
        ...     "run": [0, 0, 0, 1, 1, 1], "layer": ["conv1", "conv2", "conv3"] * 2,
        ...     "method": ["cp"] * 6, "ratio": [0.5] * 6,
        ...     "relative_weights": [0.1, 0.2, 0.3, 0.1, 0.3, 0.2], "test_error": [5, 6, 9, 5, 6, 9],
        ... }
        >>> print(correlate(table, "relative_weights", "test_error", across="layer"))
        τ-a = 0.667 ± 0.333 over 2 runs, across layer, n = 3
    """
    check_variant(variant)
    groups = grouped(table, dict.fromkeys((error, performance)), across, run)
    correlation = correlation_in(groups, error, performance, variant)
    if bootstrap is None:
        return correlation
    (means,) = resampled(groups, [error], performance, variant, bootstrap)
    low, high = percentiles(means)
    return replace(correlation, low=low, high=high)


def correlation_in(groups: Groups, error: str, performance: str, variant: Variant = "a") -> Correlation:
    """`correlate` of a table that was cut into its groups before, once for all of its errors and performances.

    Args:
        groups: the table; see `grouped`.
        error: a column of it.
        performance: another.
        variant: `"a"` or `"b"`.

    Raises:
        CompressionError: a group has one row, or its τ-b is undefined.
    """
    x, y = groups.columns[error], groups.columns[performance]
    taus: dict[Any, list[float]] = defaultdict(list)
    for label, rows in groups.rows.items():
        try:
            tau = tau_alone(x[rows], y[rows], variant)
        except CompressionError as problem:
            advice = f"add trials to it, leave it out, or vary more than across={groups.across}"
            where = f"group {groups.name(label)} of n = {len(rows)}, x={error!r}, y={performance!r}"
            raise CompressionError(f"{where}: {problem} ({advice})") from problem
        taus[groups.run_of(label)].append(tau)
    return _summary(taus, [len(rows) for rows in groups.rows.values()], groups.across, variant)


def _summary(
    taus: Mapping[Any, list[float]], rows: list[int], across: tuple[str, ...], variant: Variant
) -> Correlation:
    per_run = {run: fmean(values) for run, values in taus.items()}
    mean, std = fmean(per_run.values()), pstdev(per_run.values())
    groups = [len(values) for values in taus.values()]
    return Correlation(mean, std, per_run, min(groups), min(rows), across, variant, max(groups), max(rows))
