"""The paper's figures 1 to 4, and what a choice by an error costs, from any table of results.

Matplotlib figures, which `figure.savefig(path)` writes. Errors differ by colour, by marker and by hatching, so that
they can be told apart in grey and by the colour-blind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from tdcompress.correlation import Regret, regret
from tdcompress.deferred import DataFrame
from tdcompress.metrics import METRICS
from tdcompress.study.groupings import Tau, errors_of, taus

DPI = 180
# Okabe & Ito's palette, which colour-blind readers can tell apart; features differ from weights by hatching as well.
_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Reference:
    """Other results to stand beside, drawn faintly.

    Attributes:
        label: what the legend calls them.
        of: their τ for one of ours; None where they have none.
    """

    label: str
    of: Callable[[Tau], float | None]


def draw_all(
    folder: str | PathLike[str],
    table: DataFrame,
    performances: Mapping[str, str],
    *,
    errors: Sequence[str] | None = None,
    reference: Reference | None = None,
    baseline: float | None = None,
    label: str = "test error",
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
        "figure4_scatter": scatter(table, performances, _most_telling(errors), baseline, label),
        "figure5_regret": regrets(table, performances, errors, label) if named["methods"] else None,
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
    figure, axes = _panels(len(performances), width=4.0)
    ratios = sorted({100 * row.grouping.ratios[0] for row in rows})
    gap = min(np.diff(ratios), default=10.0) / 14
    for axis, (title, column) in zip(axes, performances.items(), strict=True):
        for place, error in enumerate(errors):
            line = [row for row in rows if (row.performance, row.error) == (column, error)]
            _line(axis, line, _style(place), shift=(place - (len(errors) - 1) / 2) * gap, reference=reference)
        axis.set_title(title)
        axis.set_xlabel("compression level (% of parameters removed)")
        axis.set_xticks(ratios)
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes[0].set_ylabel(f"Kendall's τ-a with the {label}")
    handles = list(axes[0].get_legend_handles_labels()[0])
    if reference is not None:
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
                  linestyle=(0, (5, 1)) if _on_features(error) else "-", label=spoken(error), zorder=2)  # fmt: skip
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
    figure, axes = _panels(columns, width=3.6, rows=len(groups), sharex=True)
    panels = [(rows, title, column) for rows in groups for title, column in performances.items()]
    for axis, (rows, title, column) in zip(axes, panels, strict=True):
        shown = [row for row in rows if row.performance == column]
        _bars(axis, errors, [row.correlation.mean for row in shown], [[row.correlation.std for row in shown]] * 2)
        for place, row in enumerate(shown):
            theirs = None if reference is None else reference.of(row)
            if theirs is not None:
                axis.plot(theirs, place, marker="D", color="black", markerfacecolor="white", markersize=6)
        axis.set_title(f"across {rows[0].grouping.title}\n{title}", fontsize=10)
    _name_bars(axes, errors)
    for axis in axes[-columns:]:
        axis.set_xlabel(f"Kendall's τ-a with the {label}")
    if reference is not None:
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
    figure, axes = _panels(len(performances), width=3.6)
    for axis, (title, column) in zip(axes, performances.items(), strict=True):
        choices = [regret(table, error, column) for error in errors]
        _bars(axis, errors, [scale * one.mean for one in choices], _margins(choices, scale))
        axis.set_title(f"choosing a method {title}\n(by lot: {scale * choices[0].chance:.2f})", fontsize=10)
        axis.set_xlabel(f"{label}\nabove the best method's" + (" (percentage points)" if scale == 100 else ""))
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(6))
    _name_bars(axes, errors)
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

    Args:
        table: one row a trial.
        performances: columns by the title of their panel.
        error: column of the approximation error.
        baseline: performance of the uncompressed model.
        label: what the performance is called.
        scale: the performance is multiplied by it: 100 for percent.
    """
    methods, layers = (list(dict.fromkeys(table[column])) for column in ("method", "layer"))
    colours = dict(zip(methods, _METHOD_COLOURS * len(methods), strict=False))
    markers = dict(zip(layers, _MARKERS * len(layers), strict=False))
    figure, axes = _panels(len(performances), width=4.0)
    for axis, (title, column) in zip(axes, performances.items(), strict=True):
        points = table.drop_duplicates(["layer", "method", "ratio", error, column])
        for (method, layer), part in points.groupby(["method", "layer"], sort=False):
            axis.plot(part[error], scale * part[column], markers[layer], color=colours[method],
                      markersize=5, alpha=0.7, markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip
        if baseline is not None:
            axis.axhline(scale * baseline, color="black", linestyle=":", linewidth=1.2)
        _logarithmic(axis)
        axis.set_title(title)
        axis.set_xlabel(f"approximation error: {spoken(error)}")
    axes[0].set_ylabel(label + (" (%)" if scale == 100 else ""))
    handles = [Line2D([], [], color=colours[m], marker="o", linestyle="none", label=m) for m in methods]
    handles += [Line2D([], [], color="0.4", marker=markers[x], linestyle="none", label=x) for x in layers]
    if baseline is not None:
        handles += [Line2D([], [], color="black", linestyle=":", label="uncompressed")]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def spoken(error: str) -> str:
    """A column's name for a reader: "relative weights"."""
    return error.replace("_", " ")


def _most_telling(errors: Sequence[str]) -> str:
    return "relative_weights" if "relative_weights" in errors else errors[0]


def _logarithmic(axis: Axes) -> None:
    axis.set_yscale("log", nonpositive="clip")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())


def _bars(axis: Axes, errors: Sequence[str], widths: Sequence[float], margins: Sequence[Sequence[float]]) -> None:
    for place, (error, width) in enumerate(zip(errors, widths, strict=True)):
        margin = [[side[place]] for side in margins]
        axis.barh(place, width, xerr=margin, height=0.7, color=_style(place)[0], capsize=3, edgecolor="white",
                  hatch="//" if _on_features(error) else None, linewidth=0.5, error_kw={"elinewidth": 1.2})  # fmt: skip
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def _name_bars(axes: Sequence[Axes], errors: Sequence[str]) -> None:
    axes[0].set_yticks(range(len(errors)), [spoken(error) for error in errors])
    axes[0].invert_yaxis()  # the axes are shared: the first error is on top in all of them


def _style(place: int) -> tuple[str, str]:
    return _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]


def _on_features(error: str) -> bool:
    return error in METRICS and METRICS[error].on == "features"


def _panels(columns: int, width: float, rows: int = 1, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(columns * width + 2, 2.8 * rows + 1), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).flat)
