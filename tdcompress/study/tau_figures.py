"""Figures of τ: at each ratio, and over all trials, across layers and across methods."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tdcompress.study.drawing import horizontal_bars, is_on_features, name_bars, panels, spoken, style_of
from tdcompress.study.groupings import Tau

_LEAST_GAP = 2.5  # percent between two labels


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


def by_ratio(
    rows: Sequence[Tau], performances: Mapping[str, str], reference: Reference | None = None, label: str = "test error"
) -> Figure:
    """Figure 1: τ across layers and methods at each ratio, a line an error, with its deviation over several runs.

    Where two ratios are so near that their labels would overlap, such as 98 and 99 %, all stand equally far apart.

    Args:
        rows: the τ of the groupings of single ratios; see `taus`.
        performances: columns by the title of their panel.
        reference: other results, as dotted lines.
        label: what the performance is called.
    """
    errors = list(dict.fromkeys(row.error for row in rows))
    figure, axes = panels(len(performances), width=4.0)
    ratios = sorted({100 * row.grouping.ratios[0] for row in rows})
    crowded = min(np.diff(ratios), default=_LEAST_GAP) < _LEAST_GAP
    places: Sequence[float] = range(len(ratios)) if crowded else ratios
    at = dict(zip(ratios, places, strict=True))
    gap = min(np.diff(places), default=10.0) / 14
    for axis, (title, column) in zip(axes, performances.items(), strict=True):
        for place, error in enumerate(errors):
            line = [row for row in rows if (row.performance, row.error) == (column, error)]
            shift = (place - (len(errors) - 1) / 2) * gap
            _line(axis, line, at, style_of(place), shift=shift, reference=reference)
        axis.set_title(title)
        axis.set_xlabel("compression level (% of parameters removed)")
        axis.set_xticks(list(places), [f"{ratio:g}" for ratio in ratios])
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes[0].set_ylabel(f"Kendall's τ-a with the {label}")
    handles = list(axes[0].get_legend_handles_labels()[0])
    if reference is not None and reference.has_any(rows):
        handles.append(Line2D([], [], color="0.4", linestyle=":", alpha=0.8, label=reference.label))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def _line(
    axis: Axes,
    line: Sequence[Tau],
    at: Mapping[float, float],
    style: tuple[str, str],
    shift: float,
    reference: Reference | None,
) -> None:
    colour, marker = style
    places = np.array([at[100 * row.grouping.ratios[0]] for row in line])
    mean = np.array([row.correlation.mean for row in line])
    error = line[0].error
    linestyle = (0, (5, 1)) if is_on_features(error) else "-"
    # Side by side, or the bars of one ratio would hide each other.
    axis.errorbar(places + shift, mean, _deviations(line), color=colour, marker=marker, markersize=5, linewidth=1.6,
                  capsize=2, linestyle=linestyle, label=spoken(error), zorder=2)  # fmt: skip
    theirs = [(place, reference.of(row)) for place, row in zip(places, line, strict=True)] if reference else []
    known = [(place, tau) for place, tau in theirs if tau is not None]
    if known:
        axis.plot(*zip(*known, strict=True), color=colour, linestyle=":", linewidth=1.2, alpha=0.6, zorder=1)


def bars(
    groups: Sequence[Sequence[Tau]],
    performances: Mapping[str, str],
    reference: Reference | None = None,
    label: str = "test error",
) -> Figure:
    """Figures 2 and 3: τ of each error as a bar with its deviation over several runs; a row of panels a grouping.

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
        deviations = _deviations(shown)
        margins = [] if deviations is None else [deviations, deviations]
        horizontal_bars(axis, errors, [row.correlation.mean for row in shown], margins)
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


def _deviations(rows: Sequence[Tau]) -> list[float] | None:
    """Over the runs; one run has none, which is not a deviation of 0."""
    if all(len(row.correlation.per_run) == 1 for row in rows):
        return None
    return [row.correlation.std for row in rows]
