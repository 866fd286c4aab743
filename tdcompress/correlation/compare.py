"""Which of two errors predicts a performance better, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tdcompress.correlation.bootstrap import OVER_TRIALS, Bootstrap, as_bootstrap, mean_tau, percentiles, resampled
from tdcompress.correlation.table import VARIED, Table, grouped
from tdcompress.correlation.tau import Variant, check_variant
from tdcompress.deprecation import replaced_keywords


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
        bootstrap: What was drawn, and how often.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    confidence: float
    bootstrap: Bootstrap

    def __str__(self) -> str:
        interval = f"[{self.low:+.3f}, {self.high:+.3f}]"
        return (
            f"Δτ = {self.difference:+.3f} {interval}, the first is higher in {self.confidence:.0%} of the resamples "
            f"of {self.bootstrap.unit}"
        )


@replaced_keywords(("unit", "resamples", "seed"), "bootstrap", lambda old: as_bootstrap(old, "trials"))
def compare(
    table: Table,
    first: str,
    second: str,
    performance: str,
    across: str | Iterable[str] = VARIED,
    run: str | None = "run",
    variant: Variant = "a",
    *,
    bootstrap: Bootstrap = OVER_TRIALS,
) -> Comparison:
    """Is one error better than another at predicting a performance: a paired bootstrap of the difference of their τ.

    Trials or whole layers are drawn with replacement, both errors' τ are computed from the same draw, and the
    interval is that of the differences' percentiles. A trial that is drawn twice is not compared with itself: pairs
    of copies do not count as ties, which would draw every τ to 0.

    Args:
        table: One row a trial, as `correlate` takes it.
        first: Column of an approximation error.
        second: Column of the other.
        performance: Column of the performance. With one where more is better, such as an accuracy, a good error
            has a τ near −1, and the sign of the difference turns around.
        across: What varies within a group; see `correlate`.
        run: Column that tells repetitions apart; `None` if the whole table is one run.
        variant: `"a"` or `"b"`.
        bootstrap: What is drawn, trials or whole layers, and how often.

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
        >>> print(compare(rows, "good", "bad", "test_error", run=None, bootstrap=Bootstrap(resamples=500)))
        Δτ = +1.333 [+0.883, +1.706], the first is higher in 100% of the resamples of trials
    """
    check_variant(variant)
    groups = grouped(table, dict.fromkeys((first, second, performance)), across, run)
    means = resampled(groups, [first, second], performance, variant, bootstrap)
    ones = np.ones((1, len(groups.trials)))
    taus = {error: float(mean_tau(groups, error, performance, variant, ones)[0]) for error in (first, second)}
    differences = means[0] - means[1]
    low, high = percentiles(differences)
    known = differences[~np.isnan(differences)]
    confidence = float(np.mean((known > 0) + 0.5 * (known == 0)))
    return Comparison(taus[first], taus[second], taus[first] - taus[second], low, high, confidence, bootstrap)
