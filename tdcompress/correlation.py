"""Kendall's τ between an approximation error and the performance that it should predict.

`kendall_tau` compares two lists of numbers; `correlate` does so for a table of trials, within each run and
across layers, methods or ratios, as in Schuurmans, Batselier & Kooij (ICLR 2023).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.stats
import torch
from numpy.typing import ArrayLike, NDArray

from tdcompress.errors import CompressionError

if TYPE_CHECKING:
    import pandas as pd

Variant = Literal["a", "b"]

_VARIED = ("layer", "method", "ratio")  # what a study varies, and what `across` chooses from
_MAX_N = 30_000_000  # up to here, what _tau_and_p_value reads back from a float64 is exact


@dataclass(frozen=True)
class KendallTau:
    """Kendall's τ of n pairs, with its uncertainty.

    Attributes:
        tau: The coefficient, in [-1, 1].
        low: Lower end of the approximate 95 % interval.
        high: Upper end of it.
        p_value: Two-sided p-value of the hypothesis that the two are independent.
        n: Number of pairs.
        variant: `"a"` or `"b"`.
    """

    tau: float
    low: float
    high: float
    p_value: float
    n: int
    variant: Variant = "a"

    def __str__(self) -> str:
        interval = f"[{self.low:.2f}, {self.high:.2f}]"
        return f"τ-{self.variant} = {self.tau:.3f} {interval}, n = {self.n}, p = {self.p_value:.2g}"


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

    def __str__(self) -> str:
        runs = f"± {self.std:.3f} over {len(self.per_run)} runs" if len(self.per_run) > 1 else "in one run"
        groups = f"{self.groups}" if self.groups == self.groups_max else f"{self.groups} to {self.groups_max}"
        rows = f"{self.n}" if self.n == self.n_max else f"{self.n} to {self.n_max}"
        size = f"n = {rows}" if groups == "1" else f"{groups} groups of n = {rows} per run"
        return f"τ-{self.variant} = {self.mean:.3f} {runs}, across {' × '.join(self.across)}, {size}"


def kendall_tau(
    x: ArrayLike | torch.Tensor,  # (n,)
    y: ArrayLike | torch.Tensor,  # (n,)
    variant: Variant = "a",
) -> KendallTau:
    """Kendall's rank correlation of two lists of numbers, exact with ties, in O(n log n).

    τ-a is (concordant − discordant) / (n(n−1)/2): a tied pair counts for neither. τ-b divides by the
    geometric mean of the pairs untied in x and those untied in y. The p-value is SciPy's: exact for few
    pairs without ties, else asymptotic with the correction for ties. It is the same for both variants.

    The interval is Fieller's, atanh(τ) ± 1.96·√(0.437/(n−4)), and [-1, 1] for n ≤ 4. It assumes independent
    pairs and few ties. At |τ| = 1, where it would have no width, the end that is not ±1 is computed from
    the next |τ| that n untied pairs can reach, 1 − 2/(n(n−1)/2).

    Args:
        x: Numbers, shape (n,), n ≥ 2: a sequence, array, tensor on any device, or pandas Series.
        y: Numbers, shape (n,), paired with x by position.
        variant: `"a"` or `"b"`. With a constant x or y, τ-a is 0 with a p-value of 1; τ-b is undefined.

    Raises:
        CompressionError: If x or y is not a finite vector of numbers, the lengths differ or are below 2, or
            variant is `"b"` and x or y is constant.

    References:
        Kendall, "A new measure of rank correlation", 1938. Knight, "A computer method for calculating
        Kendall's tau with ungrouped data", 1966. Fieller, Hartley & Pearson, "Tests for rank correlation
        coefficients. I", 1957.

    Example:
        >>> print(kendall_tau([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1, 3, 2, 4, 6, 5]))
        τ-a = 0.733 [0.02, 0.95], n = 6, p = 0.056
    """
    _check_variant(variant)
    first, second = _vector(x, "x"), _vector(y, "y")
    n = len(first)
    if n != len(second):
        raise CompressionError(f"x and y are paired, but x has {n} values and y has {len(second)}")
    if n < 2:
        raise CompressionError(f"Kendall's τ needs at least 2 values in x and in y, not {n}")
    if n > _MAX_N:
        raise CompressionError(f"Kendall's τ is exact up to n = {_MAX_N:,}, not for {n:,}: draw a sample")
    constant = [name for name, values in (("x", first), ("y", second)) if np.all(values == values[0])]
    if constant and variant == "b":
        which = " and of ".join(constant)
        raise CompressionError(f"τ-b is undefined: all values of {which} are equal; variant='a' gives 0")
    # No order of constant data is more likely than another, so p is 1, where SciPy has nan.
    tau, p_value = (0.0, 1.0) if constant else _tau_and_p_value(first, second, variant)
    return KendallTau(tau, *_fieller(tau, n), p_value, n, variant)


def correlate(
    table: pd.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | str | PathLike[str],
    error: str,
    performance: str,
    across: str | Iterable[str] = _VARIED,
    run: str | None = "run",
    variant: Variant = "a",
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
    _check_variant(variant)
    across = _checked_across(across, run)
    frame = _frame(table)
    keys = [*([] if run is None else [run]), *(name for name in _VARIED if name != run)]
    _check_columns(frame, [*keys, error, performance])
    trials = _trials(frame, keys)
    x, y = _numbers(frame, error, trials), _numbers(frame, performance, trials)

    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    held = [key for key in keys if key not in across]
    for row, trial in enumerate(trials):
        groups[tuple(trial[key] for key in held)].append(row)
    taus: dict[Any, list[float]] = defaultdict(list)
    for label, rows in groups.items():
        try:
            tau = kendall_tau(x[rows], y[rows], variant).tau
        except CompressionError as problem:
            group = _describe(dict(zip(held, label, strict=True))) or "the whole table"
            advice = f"add trials to it, leave it out, or vary more than across={across}"
            where = f"group {group} of n = {len(rows)}, x={error!r}, y={performance!r}"
            raise CompressionError(f"{where}: {problem} ({advice})") from problem
        taus[None if run is None else label[0]].append(tau)
    return _summary(taus, [len(rows) for rows in groups.values()], across, variant)


def _check_variant(variant: str) -> None:
    if variant not in ("a", "b"):
        raise CompressionError(f"variant must be 'a' or 'b', not {variant!r}")


def _vector(values: ArrayLike | torch.Tensor, name: str) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values  # NumPy has no bfloat16
    try:
        vector = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as problem:
        raise CompressionError(f"{name} must be a vector of numbers: {problem}") from problem
    if vector.ndim != 1:
        raise CompressionError(f"{name} must be one-dimensional; its shape is {vector.shape}")
    bad = np.flatnonzero(~np.isfinite(vector))
    if len(bad):
        found = f"{len(bad)} of {len(vector)} values are NaN or infinite, the first at index {bad[0]}"
        raise CompressionError(f"{name}: {found}; drop those pairs")
    return vector


def _tau_and_p_value(x: NDArray[np.float64], y: NDArray[np.float64], variant: Variant) -> tuple[float, float]:
    """τ and its p-value for x and y that are not constant.

    SciPy counts pairs as integers but returns only τ-b = S/√(untied in x)/√(untied in y). Multiplying the
    same two roots back makes four roundings, and SciPy's clipping to ±1 is worth two more: a relative error
    below 6·2⁻⁵³. As |S| ≤ n²/2, that is under 1/2 for n ≤ `_MAX_N`, so rounding gives the integer S itself.
    """
    result = scipy.stats.kendalltau(x, y)
    if variant == "b":
        return float(result.statistic), float(result.pvalue)
    pairs = math.comb(len(x), 2)
    scale = math.sqrt(pairs - _tied_pairs(x)) * math.sqrt(pairs - _tied_pairs(y))
    return round(float(result.statistic) * scale) / pairs, float(result.pvalue)


def _tied_pairs(values: NDArray[np.float64]) -> int:
    counts = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _fieller(tau: float, n: int) -> tuple[float, float]:
    if n <= 4:  # the variance of atanh(τ), 0.437/(n−4), has no meaning yet
        return -1.0, 1.0
    margin = 1.96 * math.sqrt(0.437 / (n - 4))
    # atanh(±1) is infinite and would take both ends to ±1. Capping only the far end keeps low ≤ τ ≤ high.
    cap = 1 - 2 / math.comb(n, 2)
    low = -1.0 if tau <= -1 else math.tanh(math.atanh(min(tau, cap)) - margin)
    high = 1.0 if tau >= 1 else math.tanh(math.atanh(max(tau, -cap)) + margin)
    return low, high


def _checked_across(across: str | Iterable[str], run: str | None) -> tuple[str, ...]:
    names = (across,) if isinstance(across, str) else tuple(across)
    unknown = [name for name in names if name not in _VARIED]
    if unknown or not names:
        found = f"has {_with_close_names(unknown, _VARIED)}" if unknown else "is empty"
        raise CompressionError(f"across {found}; it takes one or more of {', '.join(_VARIED)}")
    if run in names:
        raise CompressionError(f"run={run!r} is fixed within a run, so it cannot be in across={names} too")
    return tuple(name for name in _VARIED if name in names)


def _frame(table: Any) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as problem:
        raise ImportError("correlate reads tables with pandas: pip install tdcompress[study]") from problem
    try:
        frame = pd.read_csv(table) if isinstance(table, (str, PathLike)) else pd.DataFrame(table)
    except (TypeError, ValueError) as problem:  # pandas' parser errors are ValueErrors
        raise CompressionError(f"pandas cannot read the table: {problem}") from problem
    if frame.empty:
        raise CompressionError("the table is empty: it has no row or no column")
    return frame


def _check_columns(frame: pd.DataFrame, names: list[str]) -> None:
    there = list(frame.columns)
    wrong = [name for name in dict.fromkeys(names) if there.count(name) != 1]
    if wrong:
        advice = "; with run=None the table is one run" if names[0] in wrong and names[0] not in _VARIED else ""
        raise CompressionError(
            f"the table needs exactly one column named {_with_close_names(wrong, there)}; "
            f"it has {', '.join(map(str, there))}{advice}"
        )


def _trials(frame: pd.DataFrame, keys: list[str]) -> list[dict[str, Any]]:
    """What identifies each row, checked to be there and to occur once."""
    trials: list[dict[str, Any]] = frame[keys].to_dict("records")
    absent = np.flatnonzero(frame[keys].isna().any(axis=1).to_numpy())
    if len(absent):
        found = f"{len(absent)} of {len(trials)} rows lack one of {', '.join(keys)}"
        raise CompressionError(f"{found}, first row {absent[0]}: {_describe(trials[absent[0]])}")
    repeated = np.flatnonzero(frame.duplicated(keys).to_numpy())
    if len(repeated):
        found = f"{len(repeated)} of {len(trials)} rows repeat a trial, first row {repeated[0]}"
        advice = "keep one of each, or name the column that tells them apart as run="
        raise CompressionError(f"{found}: {_describe(trials[repeated[0]])}; {advice}")
    return trials


def _numbers(frame: pd.DataFrame, column: str, trials: list[dict[str, Any]]) -> NDArray[np.float64]:
    try:
        numbers: NDArray[np.float64] = frame[column].to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as problem:
        raise CompressionError(f"column {column!r} must hold numbers: {problem}") from problem
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        found = f"{len(bad)} of {len(numbers)} rows have NaN or infinity in the column {column!r}"
        advice = "drop those trials or measure them again"
        raise CompressionError(f"{found}, first the trial {_describe(trials[bad[0]])}; {advice}")
    return numbers


def _summary(
    taus: Mapping[Any, list[float]], rows: list[int], across: tuple[str, ...], variant: Variant
) -> Correlation:
    per_run = {run: fmean(values) for run, values in taus.items()}
    mean, std = fmean(per_run.values()), pstdev(per_run.values())
    groups = [len(values) for values in taus.values()]
    return Correlation(mean, std, per_run, min(groups), min(rows), across, variant, max(groups), max(rows))


def _describe(trial: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in trial.items())


def _with_close_names(names: list[str], known: Iterable[Any]) -> str:
    known = [str(name) for name in known]
    close = {name: get_close_matches(str(name), known, n=1) for name in names}
    return ", ".join(f"{name!r} (meant {hit[0]!r}?)" if hit else repr(name) for name, hit in close.items())
