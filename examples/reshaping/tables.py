"""The study's tables in Markdown: what is lost, what the networks still do, and Kendall's τ."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

import tdcompress as td
from examples.reshaping.trials import HIDDEN
from tdcompress.errors import CompressionError

ERRORS = ("relative_weights", "absolute_weights", "relative_features", "absolute_features")
_MISSING = "—"


def as_markdown(frame: pd.DataFrame, dense: pd.Series) -> str:
    """All tables.

    Args:
        frame: the trials.
        dense: the test error of the dense networks, by run.
    """
    parts = [
        f"Relative error of the weight of a layer at equal parameters, mean over {frame.run.nunique()} networks. "
        f"{_MISSING}: no rank is small enough.",
        *(f"\n`{layer}`\n\n{_pivot(frame[frame.layer == layer], 'relative_weights', 3)}" for layer in _layers(frame)),
        f"\nTest accuracy with both hidden layers replaced; dense {1 - dense.mean():.4f}.\n",
        _pivot(_accuracy(frame[frame.layer == HIDDEN]), "accuracy", 4),
        "\nMultiply-adds of both hidden layers, as a share of the dense ones'.\n",
        _pivot(frame[frame.layer == HIDDEN], "multiply_adds", 3),
        "\nKendall's τ-a between an error and the test cross-entropy, mean over the networks.\n",
        "\n".join(_taus(frame[frame.layer != HIDDEN])),
    ]
    return "\n".join(parts) + "\n"


def _layers(frame: pd.DataFrame) -> list[str]:
    return [layer for layer in frame.layer.unique() if layer != HIDDEN]


def _accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(accuracy=1 - frame.test_error)


def _pivot(frame: pd.DataFrame, column: str, digits: int) -> str:
    """A line a way, a column a level."""
    means = frame.groupby(["method", "ratio"], sort=False)[column].mean()
    ratios = sorted(frame.ratio.unique())
    lines = ["| | " + " | ".join(f"{ratio:.0%} removed" for ratio in ratios) + " |", "| --- |" + " --- |" * len(ratios)]
    for way in frame.method.unique():
        cells = [f"{means[way, ratio]:.{digits}f}" if (way, ratio) in means.index else _MISSING for ratio in ratios]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _taus(frame: pd.DataFrame) -> Iterator[str]:
    """Across all trials, across ways at the same layer and level, and within each way."""
    yield "| error | all | across ways | " + " | ".join(f"within {way}" for way in frame.method.unique()) + " |"
    yield "| --- |" + " --- |" * (2 + frame.method.nunique())
    for error in ERRORS:
        cells = [_tau(frame, error, ("layer", "method", "ratio")), _tau(frame, error, "method")]
        cells += [_tau(frame[frame.method == way], error, ("layer", "ratio")) for way in frame.method.unique()]
        yield f"| {error.replace('_', ' ')} | " + " | ".join(cells) + " |"


def _tau(frame: pd.DataFrame, error: str, across: str | tuple[str, ...]) -> str:
    try:
        return f"{td.correlate(frame, error, 'test_cross_entropy', across=across).mean:.2f}"
    except CompressionError:  # a group of a single trial, where a level is out of reach for all ways but one
        return _MISSING
