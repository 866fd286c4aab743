"""Figures of single trials: an error against a performance, and what a choice by an error costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tdcompress.correlation import Regret, regret
from tdcompress.deferred import DataFrame
from tdcompress.study.drawing import (
    MARKERS,
    METHOD_COLOURS,
    horizontal_bars,
    logarithmic,
    name_bars,
    panels,
    spoken,
)
from tdcompress.study.groupings import errors_of


def regrets(
    table: DataFrame,
    performances: Mapping[str, str],
    errors: Sequence[str] | None = None,
    label: str = "test error",
    scale: float = 100,
) -> Figure:
    """How much worse than the best method is the one that an error chooses, for each layer, ratio and run.

    The bars are means with their 95 % intervals over layers; the title has the mean of a choice by lot.

    Args:
        table: one row a trial.
        performances: columns by the title of their panel; less is better.
        errors: columns of approximation errors; those of registered metrics by default.
        label: what the performance is called.
        scale: the performance is multiplied by it: 100 for percentage points.
    """
    errors = list(errors or errors_of(table))
    figure, axes = panels(len(performances), width=3.6)
    for axis, (title, column) in zip(axes, performances.items(), strict=True):
        choices = [regret(table, error, column) for error in errors]
        horizontal_bars(axis, errors, [scale * one.mean for one in choices], _margins(choices, scale))
        axis.set_title(f"choosing a method {title}\n(by lot: {scale * choices[0].chance:.2f})", fontsize=10)
        axis.set_xlabel(f"{label}\nabove the best method's" + (" (percentage points)" if scale == 100 else ""))
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(6))
    name_bars(axes, errors)
    return figure


def _margins(choices: Sequence[Regret], scale: float) -> list[list[float]]:
    """To the ends of the intervals; none of one layer, which has no interval."""
    lows = [max(0.0, scale * (one.mean - one.low)) for one in choices if one.low is not None]
    highs = [max(0.0, scale * (one.high - one.mean)) for one in choices if one.high is not None]
    return [lows, highs] if lows else []


def scatter(
    table: DataFrame,
    performances: Mapping[str, str],
    error: str = "relative_weights",
    baseline: float | None = None,
    label: str = "test error",
    scale: float = 100,
) -> Figure:
    """Figure 4: an error of each trial against its performance, a colour a method and a marker a layer.

    Where there are more layers than markers, all have the same one.

    Args:
        table: one row a trial.
        performances: columns by the title of their panel.
        error: column of the approximation error.
        baseline: performance of the uncompressed model.
        label: what the performance is called.
        scale: the performance is multiplied by it: 100 for percent.
    """
    methods, layers = (list(dict.fromkeys(table[column])) for column in ("method", "layer"))
    colours = dict(zip(methods, METHOD_COLOURS * len(methods), strict=False))
    told_apart = len(layers) <= len(MARKERS)
    markers = dict(zip(layers, MARKERS if told_apart else MARKERS[:1] * len(layers), strict=False))
    figure, axes = panels(len(performances), width=4.0)
    for axis, (title, column) in zip(axes, performances.items(), strict=True):
        points = table.drop_duplicates(["layer", "method", "ratio", error, column])
        for (method, layer), part in points.groupby(["method", "layer"], sort=False):
            axis.plot(part[error], scale * part[column], markers[layer], color=colours[method],
                      markersize=5, alpha=0.7, markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip
        if baseline is not None:
            axis.axhline(scale * baseline, color="black", linestyle=":", linewidth=1.2)
        logarithmic(axis)
        axis.set_title(title)
        axis.set_xlabel(f"approximation error: {spoken(error)}")
    axes[0].set_ylabel(label + (" (%)" if scale == 100 else ""))
    handles = [Line2D([], [], color=colours[m], marker="o", linestyle="none", label=m) for m in methods]
    if told_apart:
        handles += [Line2D([], [], color="0.4", marker=markers[x], linestyle="none", label=x) for x in layers]
    if baseline is not None:
        handles += [Line2D([], [], color="black", linestyle=":", label="uncompressed")]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure
