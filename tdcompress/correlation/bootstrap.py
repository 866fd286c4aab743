"""How sure a τ is, and which of two errors has the higher one: bootstrap intervals over trials or over layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tdcompress.correlation.table import VARIED, Groups, Table, grouped
from tdcompress.correlation.tau import Variant, check_variant
from tdcompress.errors import CompressionError

Unit = Literal["trials", "layers"]
Array = NDArray[np.float64]

_AT_A_TIME = 2**22  # numbers in the largest array that a draw of weights makes


@dataclass(frozen=True)
class Comparison:
    """Which of two errors has the higher τ with a performance, and how sure that is.

    Attributes:
        first: Mean τ of the first error over the runs.
        second: That of the second.
        difference: `first − second`.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end of it.
        confidence: Share of the resamples in which the first τ is the higher one; equal ones count half.
        unit: What was drawn: `"trials"` or `"layers"`.
        resamples: How often.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    confidence: float
    unit: Unit
    resamples: int

    def __str__(self) -> str:
        interval = f"[{self.low:+.3f}, {self.high:+.3f}]"
        return (
            f"Δτ = {self.difference:+.3f} {interval}, the first is higher in {self.confidence:.0%} of the resamples "
            f"of {self.unit}"
        )


def compare(
    table: Table,
    first: str,
    second: str,
    performance: str,
    across: str | Iterable[str] = VARIED,
    run: str | None = "run",
    variant: Variant = "a",
    *,
    unit: Unit = "trials",
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Is one error better than another at predicting a performance: a paired bootstrap of the difference of their τ.

    Trials are drawn with replacement, both errors' τ are computed from the same draw, and the interval is that
    of the differences' percentiles. A trial is drawn with all its runs, because those of a deterministic method
    are one measurement. A trial that is drawn twice is not compared with itself: pairs of copies do not count
    as ties, which would draw every τ to 0.

    Trials of one layer resemble each other, so drawing trials takes the answer for these layers as that for
    layers in general. `unit="layers"` draws whole layers, and gives the wider interval that such a claim needs.

    Args:
        table: One row a trial, as `correlate` takes it.
        first: Column of an approximation error.
        second: Column of the other.
        performance: Column of the performance. With one where more is better, such as an accuracy, a good error
            has a τ near −1, and the sign of the difference turns around.
        across: What varies within a group; see `correlate`.
        run: Column that tells repetitions apart; `None` if the whole table is one run.
        variant: `"a"` or `"b"`.
        unit: What is drawn, `"trials"` or `"layers"`.
        resamples: How often.
        seed: The same one gives the same numbers.

    Raises:
        CompressionError: As `correlate`; or there is only one trial or layer to draw from.

    References:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16. Davison & Hinkley, "Bootstrap
        Methods and their Application", 1997, section 3.8, on drawing whole groups.

    Example:
        >>> rows = [
        ...     {"layer": layer, "method": "cp", "ratio": ratio, "good": ratio + 0.1 * layer, "bad": -layer,
        ...      "test_error": ratio + 0.11 * layer}
        ...     for layer in range(4) for ratio in (0.25, 0.5, 0.75)
        ... ]
        >>> print(compare(rows, "good", "bad", "test_error", run=None, resamples=500))
        Δτ = +1.333 [+0.883, +1.706], the first is higher in 100% of the resamples of trials
    """
    check_variant(variant)
    groups = grouped(table, dict.fromkeys((first, second, performance)), across, run)
    means = resampled(groups, [first, second], performance, variant, unit, resamples, seed)
    ones = np.ones((1, len(groups.trials)))
    whole = [float(_mean_tau(groups, error, performance, variant, ones)[0]) for error in (first, second)]
    differences = means[0] - means[1]
    low, high = percentiles(differences)
    known = differences[~np.isnan(differences)]
    confidence = float(np.mean((known > 0) + 0.5 * (known == 0)))
    return Comparison(whole[0], whole[1], whole[0] - whole[1], low, high, confidence, unit, resamples)


def resampled(
    groups: Groups, errors: Sequence[str], performance: str, variant: Variant, unit: Unit, resamples: int, seed: int
) -> list[Array]:
    """The mean τ of each error in the same draws, (resamples,) each.

    Raises:
        CompressionError: unknown unit, too few resamples, or one trial or layer alone.
    """
    parts = [
        [_mean_tau(groups, error, performance, variant, weights) for error in errors]
        for weights in draws(groups, unit, resamples, seed)
    ]
    return [np.concatenate(of_error) for of_error in zip(*parts, strict=True)]


def draws(groups: Groups, unit: Unit, resamples: int, seed: int) -> Iterator[Array]:
    """How often each row was drawn, (some resamples, rows), until there are `resamples` of them.

    Raises:
        CompressionError: see `resampled`.
    """
    if unit not in ("trials", "layers"):
        raise CompressionError(f"a bootstrap draws 'trials' or 'layers', not {unit!r}")
    if resamples < 100:
        raise CompressionError(f"an interval needs at least 100 resamples, better 2000, not {resamples}")
    unit_of_row = groups.trials if unit == "trials" else groups.layers
    units = int(unit_of_row.max()) + 1
    if units < 2:
        raise CompressionError(f"a bootstrap over {unit} needs at least 2 of them; the table has {units}")
    generator = np.random.default_rng(seed)
    step = max(1, _AT_A_TIME // len(unit_of_row))
    for start in range(0, resamples, step):
        counts = generator.multinomial(units, np.full(units, 1 / units), size=min(step, resamples - start))
        yield counts[:, unit_of_row].astype(float)


def percentiles(values: Array) -> tuple[float, float]:
    """The middle 95 % of the draws; those in which nothing could be compared are left out."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _mean_tau(groups: Groups, error: str, performance: str, variant: Variant, weights: Array) -> Array:
    """The mean over runs of the mean τ of the run's groups, (draws,)."""
    x, y = groups.columns[error], groups.columns[performance]
    by_run: dict[Any, list[Array]] = defaultdict(list)
    for label, rows in groups.rows.items():
        by_run[groups.run_of(label)].append(_weighted_tau(x[rows], y[rows], weights[:, rows], variant))
    return _mean([_mean(taus) for taus in by_run.values()])


def _weighted_tau(x: Array, y: Array, weights: Array, variant: Variant) -> Array:
    """τ for each draw, in which row i stands weights[:, i] times; NaN where no two different rows are left.

    With s = sign(x_i − x_j) sign(y_i − y_j), τ-a is Σ_ij w_i w_j s_ij / Σ_{i≠j} w_i w_j.
    """
    over = _pair_sums([x, y], weights)
    if variant == "a":
        size = weights.sum(1) ** 2 - (weights**2).sum(1)
    else:
        size = np.sqrt(_pair_sums([x, x], weights)) * np.sqrt(_pair_sums([y, y], weights))
    return np.divide(over, size, out=np.full(len(weights), math.nan), where=size > 0)


def _pair_sums(columns: Sequence[Array], weights: Array) -> Array:
    """Σ_ij w_i w_j Π_c sign(c_i − c_j), (draws,)."""
    total = np.zeros(len(weights))
    step = max(1, _AT_A_TIME // weights.shape[1])
    for start in range(0, weights.shape[1], step):
        block = slice(start, start + step)
        signs = np.prod([np.sign(np.subtract.outer(column[block], column)) for column in columns], axis=0)
        total += ((weights[:, block] @ signs) * weights).sum(1)
    return total


def _mean(arrays: Sequence[Array]) -> Array:
    """The mean over arrays, each where it is a number."""
    if len(arrays) == 1:
        return arrays[0]
    stacked = np.array(arrays)
    known = ~np.isnan(stacked)
    counts = known.sum(0)
    total = np.where(known, stacked, 0.0).sum(0)
    return np.divide(total, counts, out=np.full(stacked.shape[1], math.nan), where=counts > 0)
