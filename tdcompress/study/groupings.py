"""The comparisons of the paper's figures: which trials of a table are set against which, and the τ of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdcompress.correlation import Correlation
from tdcompress.correlation.correlate import correlation_in
from tdcompress.correlation.table import VARIED, grouped
from tdcompress.deferred import DataFrame
from tdcompress.errors import CompressionError
from tdcompress.metrics import METRICS
from tdcompress.study.states import states

HIGH = 0.5  # ratios from here on are those of the paper's figures 2 and 3


@dataclass(frozen=True)
class Grouping:
    """Which trials are compared with which.

    Attributes:
        name: "all", "layers", "methods", or a ratio such as "75%".
        across: the columns that vary within a group.
        ratios: the ratios that are looked at.
    """

    name: str
    across: tuple[str, ...]
    ratios: tuple[float, ...]

    @property
    def title(self) -> str:
        """The name for a reader, such as "all, 50–90 %"."""
        return f"{'layers and methods' if self.name.endswith('%') else self.name}, {self.levels}"

    @property
    def levels(self) -> str:
        """The ratios for a reader, such as "50–90 %"."""
        ends = dict.fromkeys(f"{100 * ratio:.0f}" for ratio in (self.ratios[0], self.ratios[-1]))
        return f"{'–'.join(ends)} %"

    def of(self, table: DataFrame, performance: str | None = None) -> DataFrame:
        """The rows of a table that are looked at: all, or in groups of two and more those with a performance."""
        rows = table[table["ratio"].isin(self.ratios)]
        if performance is None or rows[performance].notna().all():
            return rows
        return comparable(rows[rows[performance].notna()], self.across)


@dataclass(frozen=True)
class Tau:
    """One number of a figure.

    Attributes:
        grouping: which trials were compared.
        error: column of the approximation error.
        performance: column of the performance.
        correlation: its τ.
    """

    grouping: Grouping
    error: str
    performance: str
    correlation: Correlation


def comparable(table: DataFrame, across: Sequence[str]) -> DataFrame:
    """The trials that have another to be compared with: a small layer may have none at a high level.

    Args:
        table: one row a trial.
        across: the columns that vary within a group.
    """
    return table[_in_groups(table, across).transform("size") > 1]


def errors_of(table: DataFrame) -> list[str]:
    """The columns that are errors of registered metrics.

    Raises:
        CompressionError: there is none.
    """
    errors = [name for name in METRICS if name in table]
    if not errors:
        raise CompressionError(f"no column is named like a metric; name the errors among {', '.join(table.columns)}.")
    return errors


def performances_of(table: DataFrame, column: str) -> dict[str, str]:
    """A performance in every state that a table has: the columns by what stands above them.

    >>> import pandas
    >>> performances_of(pandas.DataFrame(columns=["test_error", "finetuned_test_error"]), "test_error")
    {'before fine-tuning': 'test_error', 'after fine-tuning': 'finetuned_test_error'}
    """
    named = {title: f"{prefix}{column}" for title, prefix in states(table.columns).items()}
    return {title: name for title, name in named.items() if name in table}


def groupings(table: DataFrame) -> Iterator[Grouping]:
    """The groupings that a table allows: a group needs two trials to compare."""
    there = tuple(sorted(float(ratio) for ratio in table["ratio"].unique()))
    high = tuple(ratio for ratio in there if ratio >= HIGH)
    wanted = [
        Grouping("all", VARIED, high),
        Grouping("layers", ("layer",), high),
        Grouping("methods", ("method",), high),
        *(Grouping(f"{ratio:.0%}", VARIED[:2], (ratio,)) for ratio in there),
    ]
    for grouping in wanted:
        sizes = _in_groups(grouping.of(table), grouping.across).size()
        if len(sizes) and sizes.min() > 1:
            yield grouping


def taus(
    table: DataFrame, performances: Mapping[str, str] | Sequence[str], errors: Sequence[str] | None = None
) -> list[Tau]:
    """Every τ-a of the figures: groupings × errors × performances.

    Trials whose performance could not be measured, such as a fine-tuning that failed, do not count for it.

    Args:
        table: one row a trial, as `Study.run` gives it.
        performances: columns, or the columns by title.
        errors: columns; those of registered metrics by default.

    Example:
        >>> import pandas
        >>> rows = [("conv1", "cp", 0.5), ("conv1", "tucker", 0.5), ("conv2", "cp", 0.5), ("conv2", "tucker", 0.5)]
        >>> table = pandas.DataFrame(rows, columns=["layer", "method", "ratio"]).assign(run=0)
        >>> table["relative_weights"], table["test_error"] = [0.1, 0.2, 0.3, 0.4], [0.05, 0.06, 0.09, 0.08]
        >>> for tau in taus(table, ["test_error"]):
        ...     print(f"{tau.grouping.title}: {tau.correlation.mean:.2f}")
        all, 50 %: 0.67
        layers, 50 %: 1.00
        methods, 50 %: 0.00
        layers and methods, 50 %: 0.67
    """
    columns = list(performances.values()) if isinstance(performances, Mapping) else list(performances)
    errors = list(errors or errors_of(table))
    found = []
    for grouping in groupings(table):
        parts = {column: part for column in columns if len(part := grouping.of(table, column))}
        groups = {
            column: grouped(part, dict.fromkeys([*errors, column]), grouping.across, "run")
            for column, part in parts.items()
        }
        found += [
            Tau(grouping, error, column, correlation_in(groups[column], error, column))
            for error in errors
            for column in groups
        ]
    return found


def _in_groups(table: DataFrame, across: Sequence[str]) -> Any:
    return table.groupby(["run", *(key for key in VARIED if key not in across)])["ratio"]
