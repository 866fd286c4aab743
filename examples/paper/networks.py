"""Which error to trust, asked of the trials of several networks: τ, paired differences, regret, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

import tdcompress as td
from tdcompress.correlation.bootstrap import mean_tau, percentiles, resampled
from tdcompress.correlation.table import grouped
from tdcompress.study.groupings import comparable, errors_of

LEVELS = (0.5, 0.75, 0.9, 0.95)  # those that most studies have, from the lowest of the paper's figures 2 and 3 on
BASE = "relative_weights"  # what the paper advises
DUELS = (("predicted_loss", "scaled_weights"), ("output_divergence", "predicted_loss"))  # the close ones
GROUPINGS: Mapping[str, tuple[str, ...]] = {
    "all": ("layer", "method", "ratio"),
    "layers": ("layer",),
    "methods": ("method",),
    "levels": ("ratio",),
}
# What is asked with, and what stands for it where a table has none: bits per byte are a cross-entropy.
WANTED = {
    "cross-entropy": ("cross_entropy", "bits_per_byte"),
    "classification error": ("error", "bits_per_byte", "cross_entropy"),
}
_OVER_LAYERS = td.Bootstrap("layers")

Studies = Mapping[str, pd.DataFrame]


def taus(tables: Studies, bootstrap: td.Bootstrap = _OVER_LAYERS) -> pd.DataFrame:
    """τ-a of every error in every network, and how far above that of relative weights it is.

    Args:
        tables: the trials of each network, one row a trial, before fine-tuning.
        bootstrap: of all intervals, over whole layers.

    Returns:
        One row a network, grouping, measure and error: `network`, `across`, `measure`, `error`, `tau`, `low`, `high`,
        and `rise`, `rise_low`, `rise_high`, the paired difference to relative weights; theirs is 0.
    """
    rows = []
    for network, table in tables.items():
        for measure in WANTED:
            column = performance(table, measure)
            for across, columns in GROUPINGS.items():
                part = comparable(table[table["ratio"].isin(LEVELS)], columns)
                if part["layer"].nunique() < 2:
                    continue
                for error, numbers in _of_errors(part, column, columns, bootstrap).items():
                    rows.append({"network": network, "across": across, "measure": measure, "error": error, **numbers})
    return pd.DataFrame(rows)


def _of_errors(
    part: pd.DataFrame, column: str, across: Sequence[str], bootstrap: td.Bootstrap
) -> dict[str, dict[str, float]]:
    """What `correlate` and `compare` say of every error, by the same draws of layers once for all of them."""
    errors = errors_of(part)
    groups = grouped(part, [*errors, column], across, "run")
    drawn = dict(zip(errors, resampled(groups, errors, column, "a", bootstrap), strict=True))
    whole = np.ones((1, len(part)))
    taus = {error: float(mean_tau(groups, error, column, "a", whole)[0]) for error in errors}
    found = {}
    for error in errors:
        (low, high), (rise_low, rise_high) = percentiles(drawn[error]), percentiles(drawn[error] - drawn[BASE])
        found[error] = {"tau": taus[error], "low": low, "high": high, "rise": taus[error] - taus[BASE]}
        found[error] |= {"rise_low": rise_low, "rise_high": rise_high}
    return found


def duels(tables: Studies, bootstrap: td.Bootstrap = _OVER_LAYERS) -> pd.DataFrame:
    """How much higher τ with the cross-entropy is for the first of two errors than for the second, paired.

    Returns:
        One row a network, `across` (all or layers) and pair, its `error` "the first less the second", with `rise`,
        `rise_low`, `rise_high`.
    """
    rows = []
    for network, table in tables.items():
        column = performance(table, "cross-entropy")
        for across in ("all", "layers"):
            part = comparable(table[table["ratio"].isin(LEVELS)], GROUPINGS[across])
            for first, second in DUELS:
                found = td.compare(part, first, second, column, GROUPINGS[across], bootstrap=bootstrap)
                row = {"network": network, "across": across, "error": f"{first} less {second}"}
                rows.append({**row, "rise": found.difference, "rise_low": found.low, "rise_high": found.high})
    return pd.DataFrame(rows)


def regrets(tables: Studies, bootstrap: td.Bootstrap = _OVER_LAYERS) -> pd.DataFrame:
    """What it costs to choose by an error: how much worse than the best the choice performs.

    Returns:
        One row a network, `among` (methods or layers) and error: `mean`, `low`, `high` (None among layers) and
        `chance`, in the unit of the classification error or, for text, of the bits.
    """
    rows = []
    for network, table in tables.items():
        column = performance(table, "classification error")
        for among, columns in (("methods", ("method",)), ("layers", ("layer",))):
            part = comparable(table[table["ratio"].isin(LEVELS)], columns)
            if part.empty:
                continue
            for error in errors_of(table):
                found = td.regret(part, error, column, columns, bootstrap=bootstrap)
                row = {"network": network, "among": among, "error": error, "column": column, "mean": found.mean}
                rows.append(row | {"low": found.low, "high": found.high, "chance": found.chance})
    return pd.DataFrame(rows)


def performance(table: pd.DataFrame, measure: str) -> str:
    """The column of a measure, or of what stands for it."""
    return next(f"test_{one}" for one in WANTED[measure] if f"test_{one}" in table)
