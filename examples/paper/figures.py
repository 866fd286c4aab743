"""The paper's figures 1 to 4, drawn from a study's table and from its τ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from examples.paper.reference import Published
from examples.paper.runner import ERRORS
from examples.paper.tables import Tau, performance_column, phases, spoken

DPI = 180
# Okabe & Ito's palette, which colour-blind readers can tell apart; weights and features differ in dash as well.
_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
_METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE = dict(zip(ERRORS, zip(_COLOURS, _MARKERS, strict=False), strict=True))
_WHEN = {False: "before fine-tuning", True: "after fine-tuning"}


def draw_all(
    folder: Path, frame: pd.DataFrame, rows: Sequence[Tau], published: Published, baseline: float
) -> list[Path]:
    """Draw every figure that the table allows into a folder.

    Args:
        folder: made if it is missing.
        frame: one row a trial; `Store.frame`.
        rows: its τ; `taus`.
        published: what the faint lines and the diamonds are.
        baseline: test classification error of the network before any compression.

    Returns:
        The files, PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in rows if row.measure == "error"]
    by_name = {name: [row for row in rows if row.view.name == name] for name in ("all", "layers", "methods")}
    levels = [row for row in rows if row.view.name.endswith("%")]
    figures = {
        "figure1_by_level": levels and by_level(levels, published),
        "figure2_all": by_name["all"] and bars({"all": by_name["all"]}, published),
        "figure3_layers_and_methods": by_name["layers"]
        and by_name["methods"]
        and bars({name: by_name[name] for name in ("layers", "methods")}, published),
        "figure4_scatter": scatter(frame, baseline),
    }
    files = []
    for name, figure in figures.items():
        if figure:
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=DPI)
    return files


def by_level(rows: Sequence[Tau], published: Published) -> Figure:
    """Figure 1: τ across layers and methods at each compression level, a line an error."""
    when = sorted({row.fine_tuned for row in rows})
    figure, axes = _panels(len(when), width=4.0)
    for axis, fine_tuned in zip(axes, when, strict=True):
        for place, error in enumerate(ERRORS):
            line = [row for row in rows if (row.fine_tuned, row.error) == (fine_tuned, error)]
            _level_line(axis, line, error, shift=(place - 2.5) * 0.8)
        axis.set_title(_WHEN[fine_tuned])
        axis.set_xlabel("compression level (% of parameters removed)")
        axis.set_xticks(sorted({100 * row.view.ratios[0] for row in rows}))
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes[0].set_ylabel("Kendall's τ-a with the test error")
    paper = Line2D([], [], color="0.4", linestyle="--", alpha=0.6, label=_paper_label(published))
    handles = [*axes[0].get_legend_handles_labels()[0], paper]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def _level_line(axis: Axes, line: Sequence[Tau], error: str, shift: float) -> None:
    colour, marker = _STYLE[error]
    levels = np.array([100 * row.view.ratios[0] for row in line])
    mean, std = (np.array([getattr(row.found, name) for row in line]) for name in ("mean", "std"))
    axis.errorbar(
        levels + shift,  # side by side, or bars of one level would hide each other
        mean,
        std,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        capsize=2,
        label=spoken(error),
        zorder=3 if error == "relative_weights" else 2,
    )
    printed = [(level, row.paper[0]) for level, row in zip(levels, line, strict=True) if row.paper]
    if printed:
        axis.plot(*zip(*printed, strict=True), color=colour, linestyle="--", linewidth=1, alpha=0.45, zorder=1)


def bars(groups: dict[str, Sequence[Tau]], published: Published) -> Figure:
    """Figures 2 and 3: τ of each error as a bar, the paper's as a diamond; one panel a view and phase."""
    panels = [
        (fine_tuned, [row for row in rows if row.fine_tuned == fine_tuned])
        for rows in groups.values()
        for fine_tuned in sorted({row.fine_tuned for row in rows})
    ]
    columns = max(len(panels) // len(groups), 1)
    figure, axes = _panels(columns, width=3.6, rows=len(groups), sharex=True)
    for axis, (fine_tuned, rows) in zip(axes, panels, strict=True):
        _bar_panel(axis, rows)
        axis.set_title(f"across {rows[0].view.title}\n{_WHEN[fine_tuned]}", fontsize=10)
    axes[0].set_yticks(range(len(ERRORS)), [spoken(error) for error in ERRORS])
    axes[0].invert_yaxis()  # the axes are shared: the first error is on top in all of them
    for axis in axes[-columns:]:
        axis.set_xlabel("Kendall's τ-a with the test error")
    paper = Line2D([], [], color="black", marker="D", markerfacecolor="white", linestyle="none")
    paper.set_label(_paper_label(published))
    figure.legend(handles=[paper], loc="outside lower center", frameon=False)
    return figure


def _bar_panel(axis: Axes, rows: Sequence[Tau]) -> None:
    for place, row in enumerate(rows):
        colour, _ = _STYLE[row.error]
        hatch = "//" if row.error.endswith("features") else None
        axis.barh(place, row.found.mean, xerr=row.found.std, height=0.7, color=colour, capsize=3, hatch=hatch,
                  edgecolor="white", linewidth=0.5, error_kw={"elinewidth": 1.2})  # fmt: skip
        if row.paper:
            axis.plot(row.paper[0], place, marker="D", color="black", markerfacecolor="white", markersize=6)
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def scatter(frame: pd.DataFrame, baseline: float) -> Figure:
    """Figure 4: each trial's relative weight error against its test classification error."""
    when = phases(frame)
    methods, layers = (list(dict.fromkeys(frame[column])) for column in ("method", "layer"))
    colours = dict(zip(methods, _METHOD_COLOURS * len(methods), strict=False))
    markers = dict(zip(layers, _MARKERS * len(layers), strict=False))
    figure, axes = _panels(len(when), width=4.0)
    for axis, fine_tuned in zip(axes, when, strict=True):
        performance = performance_column("error", fine_tuned)
        points = frame.drop_duplicates(["layer", "method", "ratio", "relative_weights", performance])
        for (method, layer), part in points.groupby(["method", "layer"], sort=False):
            axis.plot(part["relative_weights"], 100 * part[performance], markers[layer], color=colours[method],
                      markersize=5, alpha=0.65, markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip
        axis.axhline(100 * baseline, color="black", linestyle=":", linewidth=1.2)
        axis.set_yscale("log", nonpositive="clip")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(_WHEN[fine_tuned])
        axis.set_xlabel("relative weight error ‖W − W̃‖ / ‖W‖")
    axes[0].set_ylabel("test classification error (%)")
    handles = [Line2D([], [], color=colours[m], marker="o", linestyle="none", label=m) for m in methods]
    handles += [Line2D([], [], color="0.4", marker=markers[x], linestyle="none", label=x) for x in layers]
    handles += [Line2D([], [], color="black", linestyle=":", label="uncompressed")]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


def _panels(columns: int, width: float, rows: int = 1, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(columns * width + 2, 2.8 * rows + 1), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).flat)


def _paper_label(published: Published) -> str:
    return "the paper" if published.same_network else f"the paper's nearest:\n{published}"
