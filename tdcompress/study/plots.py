"""The paper's figures 1 to 4, and what a choice by an error costs, from any table of results.

Matplotlib figures, which `figure.savefig(path)` writes. Errors differ by colour, by marker and by hatching, so that
they can be told apart in grey and by the colour-blind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tdcompress.correlation import Regret, regret
from tdcompress.deferred import DataFrame
from tdcompress.study.drawing import (
    MARKERS,
    METHOD_COLOURS,
    horizontal_bars,
    is_on_features,
    logarithmic,
    name_bars,
    panels,
    spoken,
    style_of,
)
from tdcompress.study.groupings import Tau, errors_of, taus

DPI = 180


@dataclass(frozen=True)
class Reference:
    """Other results to stand beside, drawn faintly.

    Attributes:
        label: what the legend calls them.
        of: their τ for one of ours; None where they have none.
    """

    label: str
    of: Callable[[Tau], float | None]

    def has_any(self, rows: Iterable[Tau]) -> bool:
        """Whether there is something to explain in a legend."""
        return any(self.of(row) is not None for row in rows)


def draw_all(
    folder: str | PathLike[str],
    table: DataFrame,
    performances: Mapping[str, str],
    *,
    errors: Sequence[str] | None = None,
    reference: Reference | None = None,
    baseline: float | None = None,
    label: str = "test error",
    scale: float = 100,
) -> list[Path]:
    """Draw every figure that a table allows.

    Args:
        folder: for the PNG files; made if it is missing.
        table: one row a trial, as `Study.run` gives it.
        performances: columns by the title of their panel, such as `{"before fine-tuning": "test_error"}`.
        errors: columns of approximation errors; those of registered metrics by default.
        reference: other results to stand beside.
        baseline: the performance of the uncompressed model.
        label: what the performance is called on an axis.
        scale: the performance is multiplied by it: 100 for percent.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    errors = list(errors or errors_of(table))
    rows = taus(table, performances, errors)
    named = {name: [row for row in rows if row.grouping.name == name] for name in ("all", "layers", "methods")}
    levels = [row for row in rows if row.grouping.name.endswith("%")]
    figures: dict[str, Figure | None] = {
        "figure1_by_level": by_ratio(levels, performances, reference, label) if levels else None,
        "figure2_all": bars([named["all"]], performances, reference, label) if named["all"] else None,
        "figure3_layers_and_methods": bars([named["layers"], named["methods"]], performances, reference, label)
        if named["layers"] and named["methods"]
        else None,
        "figure4_scatter": scatter(table, performances, _most_telling(errors), baseline, label, scale),
        "figure5_regret": regrets(table, performances, errors, label, scale) if named["methods"] else None,
    }
    files = []
    for name, figure in figures.items():
        if figure is not None:
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=DPI)
    return files


def by_ratio(
    rows: Sequence[Tau], performances: Mapping[str, str], reference: Reference | None = None, label: str = "test error"
) -> Figure:
    """Figure 1: τ across layers and methods at each ratio, a line an error, with its deviation over the runs.

    Args:
        rows: the τ of the groupings of single ratios; see `taus`.
        performances: columns by the title of their panel.
        reference: other results, as dotted lines.
        label: what the performance is called.
    """
    errors = list(dict.fromkeys(row.error for row in rows))
    figure, axes = panels(len(performances), width=4.0)
    ratios = sorted({100 * row.grouping.ratios[0] for row in rows})
    gap = min(np.diff(ratios), default=10.0) / 14
    for axis, (title, column) in zip(axes, performances.items(), strict=True):
        for place, error in enumerate(errors):
            line = [row for row in rows if (row.performance, row.error) == (column, error)]
            _line(axis, line, style_of(place), shift=(place - (len(errors) - 1) / 2) * gap, reference=reference)
        axis.set_title(title)
        axis.set_xlabel("compression level (% of parameters removed)")
        axis.set_xticks(ratios)
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes[0].set_ylabel(f"Kendall's τ-a with the {label}")
    handles = list(axes[0].get_legend_handles_labels()[0])
    if reference is not None and reference.has_any(rows):
        handles.append(Line2D([], [], color="0.4", linestyle=":", alpha=0.8, label=reference.label))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def _line(axis: Axes, line: Sequence[Tau], style: tuple[str, str], shift: float, reference: Reference | None) -> None:
    colour, marker = style
    ratios = np.array([100 * row.grouping.ratios[0] for row in line])
    mean, std = (np.array([getattr(row.correlation, name) for row in line]) for name in ("mean", "std"))
    error = line[0].error
    # Side by side, or the bars of one ratio would hide each other.
    axis.errorbar(ratios + shift, mean, std, color=colour, marker=marker, markersize=5, linewidth=1.6, capsize=2,
                  linestyle=(0, (5, 1)) if is_on_features(error) else "-", label=spoken(error), zorder=2)  # fmt: skip
    theirs = [(ratio, reference.of(row)) for ratio, row in zip(ratios, line, strict=True)] if reference else []
    known = [(ratio, tau) for ratio, tau in theirs if tau is not None]
    if known:
        axis.plot(*zip(*known, strict=True), color=colour, linestyle=":", linewidth=1.2, alpha=0.6, zorder=1)


def bars(
    groups: Sequence[Sequence[Tau]],
    performances: Mapping[str, str],
    reference: Reference | None = None,
    label: str = "test error",
) -> Figure:
    """Figures 2 and 3: τ of each error as a bar with its deviation over the runs; a row of panels a grouping.

    Args:
        groups: the τ of one grouping each; see `taus`.
        performances: columns by the title of their panel.
        reference: other results, as diamonds.
        label: what the performance is called.
    """
    columns = len(performances)
    errors = list(dict.fromkeys(row.error for row in groups[0]))
    figure, axes = panels(columns, width=3.6, rows=len(groups), sharex=True)
    shown_in = [(rows, title, column) for rows in groups for title, column in performances.items()]
    for axis, (rows, title, column) in zip(axes, shown_in, strict=True):
        shown = [row for row in rows if row.performance == column]
        deviations = [row.correlation.std for row in shown]
        horizontal_bars(axis, errors, [row.correlation.mean for row in shown], [deviations, deviations])
        for place, row in enumerate(shown):
            theirs = None if reference is None else reference.of(row)
            if theirs is not None:
                axis.plot(theirs, place, marker="D", color="black", markerfacecolor="white", markersize=6)
        axis.set_title(f"across {rows[0].grouping.title}\n{title}", fontsize=10)
    name_bars(axes, errors)
    for axis in axes[-columns:]:
        axis.set_xlabel(f"Kendall's τ-a with the {label}")
    if reference is not None and reference.has_any(itertools.chain(*groups)):
        theirs_handle = Line2D([], [], color="black", marker="D", markerfacecolor="white", linestyle="none")
        theirs_handle.set_label(reference.label)
        figure.legend(handles=[theirs_handle], loc="outside lower center", frameon=False)
    return figure


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
    lows = [scale * (one.mean - (one.mean if one.low is None else one.low)) for one in choices]
    highs = [scale * ((one.mean if one.high is None else one.high) - one.mean) for one in choices]
    return [[max(0.0, low) for low in lows], [max(0.0, high) for high in highs]]


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


def _most_telling(errors: Sequence[str]) -> str:
    return "relative_weights" if "relative_weights" in errors else errors[0]
