"""How sure a τ is: bootstrap intervals over trials or over layers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tdcompress.correlation.table import Groups
from tdcompress.correlation.tau import Variant
from tdcompress.errors import CompressionError

Unit = Literal["trials", "layers"]
Array = NDArray[np.float64]

_AT_A_TIME = 2**22  # numbers in the largest array that a draw of weights makes


@dataclass(frozen=True)
class Bootstrap:
    """What is drawn anew, with replacement, to see how sure a number is, and how often.

    Trials of one layer resemble each other, so drawing trials takes the answer for these layers as that for layers in
    general. Whole layers give the wider interval that such a claim needs.

    Attributes:
        unit: `"trials"`, each with all its runs, because those of a deterministic method are one measurement; or
            `"layers"`, each with all its trials.
        resamples: how often, at least 100.
        seed: of the draws; the same one gives the same numbers.

    Raises:
        CompressionError: unknown unit, or too few resamples.

    References:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Davison & Hinkley, "Bootstrap Methods
        and their Application", 1997, section 3.8, on drawing whole groups.

    Example:
        >>> Bootstrap("layers", seed=1)
        Bootstrap(unit='layers', resamples=2000, seed=1)
    """

    unit: Unit = "trials"
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unit not in ("trials", "layers"):
            raise CompressionError(f"a bootstrap draws 'trials' or 'layers', not {self.unit!r}")
        if self.resamples < 100:
            raise CompressionError(f"an interval needs at least 100 resamples, better 2000, not {self.resamples}")


OVER_TRIALS, OVER_LAYERS = Bootstrap("trials"), Bootstrap("layers")


def as_bootstrap(old: Mapping[str, Any], unit: Unit) -> Bootstrap:
    """What `unit=`, `resamples=` and `seed=` said before there was a `Bootstrap`.

    Args:
        old: those that were given.
        unit: what is drawn where they do not say.
    """
    return Bootstrap(**{"unit": unit, **old})


def resampled(
    groups: Groups, errors: Sequence[str], performance: str, variant: Variant, bootstrap: Bootstrap
) -> list[Array]:
    """The mean τ of each error in the same draws, (resamples,) each.

    Raises:
        CompressionError: see `draws`.
    """
    parts = [
        [mean_tau(groups, error, performance, variant, weights) for error in errors]
        for weights in draws(groups, bootstrap)
    ]
    return [np.concatenate(of_error) for of_error in zip(*parts, strict=True)]


def draws(groups: Groups, bootstrap: Bootstrap) -> Iterator[Array]:
    """How often each row was drawn, (some resamples, rows), until there are `resamples` of them.

    Raises:
        CompressionError: one trial or layer alone, or it is no `Bootstrap`.
    """
    if not isinstance(bootstrap, Bootstrap):
        raise CompressionError(f"bootstrap must be a td.Bootstrap, such as td.Bootstrap('layers'), not {bootstrap!r}")
    unit_of_row = groups.trials if bootstrap.unit == "trials" else groups.layers
    units = int(unit_of_row.max()) + 1
    if units < 2:
        raise CompressionError(f"a bootstrap over {bootstrap.unit} needs at least 2 of them; the table has {units}")
    generator = np.random.default_rng(bootstrap.seed)
    step = max(1, _AT_A_TIME // len(unit_of_row))
    for start in range(0, bootstrap.resamples, step):
        size = min(step, bootstrap.resamples - start)
        yield generator.multinomial(units, np.full(units, 1 / units), size=size)[:, unit_of_row].astype(float)


def percentiles(values: Array) -> tuple[float, float]:
    """The middle 95 % of the draws; those in which nothing could be compared are left out."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def mean_tau(groups: Groups, error: str, performance: str, variant: Variant, weights: Array) -> Array:
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
