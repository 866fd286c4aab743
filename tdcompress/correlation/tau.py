"""Kendall's τ of two lists of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tdcompress.errors import CompressionError

Variant = Literal["a", "b"]

_MAX_N = 30_000_000  # up to here, what _tau_and_p_value reads back from a float64 is exact
_FEW = 100  # up to here, comparing all pairs takes less time than sorting them by many small steps


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
    check_variant(variant)
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


def tau_alone(x: NDArray[np.float64], y: NDArray[np.float64], variant: Variant = "a") -> float:
    """The τ of `kendall_tau`, bit for bit, without the p-value: of few pairs that takes fifty times as long.

    Args:
        x: Finite numbers, shape (n,), n ≥ 2.
        y: Finite numbers, shape (n,), paired with x by position.
        variant: `"a"` or `"b"`.

    Raises:
        CompressionError: As `kendall_tau`.

    Example:
        >>> print(f"{tau_alone(np.array([0.1, 0.2, 0.3]), np.array([1.0, 3.0, 2.0])):.3f}")
        0.333
    """
    n = len(x)
    if variant == "b" or not 2 <= n <= _FEW:
        return kendall_tau(x, y, variant).tau
    with np.errstate(over="ignore"):  # the sign of a difference that is too large is still right
        signs = np.sign(np.subtract.outer(x, x)) * np.sign(np.subtract.outer(y, y))
    return float(signs.sum()) / (n * (n - 1))  # Σ_ij s_ij is twice the sum over pairs


def check_variant(variant: str) -> None:
    """Refuse what is neither `"a"` nor `"b"`."""
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
        complaint = f"{len(bad)} of {len(vector)} values are NaN or infinite, the first at index {bad[0]}"
        raise CompressionError(f"{name}: {complaint}; drop those pairs")
    return vector


def _tau_and_p_value(x: NDArray[np.float64], y: NDArray[np.float64], variant: Variant) -> tuple[float, float]:
    """τ and its p-value for x and y that are not constant.

    SciPy counts pairs as integers but returns only τ-b = S/√(untied in x)/√(untied in y). Multiplying the
    same two roots back makes four roundings, and SciPy's clipping to ±1 is worth two more: a relative error
    below 6·2⁻⁵³. As |S| ≤ n²/2, that is under 1/2 for n ≤ `_MAX_N`, so rounding gives the integer S itself.
    """
    import scipy.stats  # takes its time to load

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
