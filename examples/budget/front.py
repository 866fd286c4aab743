"""The picture of the first page: accuracy against parameters and against latency, from a table of `examples.budget`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, PercentFormatter

from examples.budget.__main__ import read_rows
from examples.command import run_command
from tdcompress.errors import CompressionError
from tdcompress.report.table import short_count

TABLE, PICTURE = "docs/compress/garipov-fmnist/results.csv", "docs/front.png"
# The lines, with what is said of them: what users of other libraries get, and what they get here.
SHOWN = {
    "uniform Tucker, tensorly-torch": ("Tucker, one ratio for all (tensorly-torch)", "#8c8c8c"),
    "uniform CP": ("CP, one ratio for all (tdcompress)", "#4c9be8"),
    "plan + calibration + data-aware": ("td.compress", "#d9480f"),
    "plan + calibration + data-aware + distilled": ('td.compress, fit="outputs"', "#7b2cbf"),
}


def draw(rows: Sequence[Mapping[str, str]], dense: float, path: str | Path) -> None:
    """Both panels; the grey line is the dense network.

    Args:
        rows: the table's rows, as text.
        dense: the accuracy of the network before.
        path: where to write the picture.
    """
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    for procedure, (label, color) in SHOWN.items():
        mine = sorted((row for row in rows if row["procedure"] == procedure), key=lambda row: float(row["ratio"]))
        if not mine:
            continue
        accuracy = [float(row["accuracy"]) for row in mine]
        style = {"marker": "o", "markersize": 4, "color": color}
        left.plot([int(row["parameters"]) for row in mine], accuracy, label=label, **style)
        right.plot([_share(row) for row in mine], accuracy, **style)
    sizes = sorted({float(row["ratio"]): int(row["parameters"]) for row in rows}.values())
    left.set_xscale("log")
    left.xaxis.set_major_locator(FixedLocator(sizes))
    left.set_xticklabels([short_count(size) for size in sizes])
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("parameters")
    left.set_ylabel("test accuracy")
    right.set_xlabel("time of a forward, as a share of the dense network's")
    right.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
    for axes in (left, right):
        axes.axhline(dense, color="grey", linewidth=0.8, linestyle="--", label="dense")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _share(row: Mapping[str, str]) -> float:
    return float(row["milliseconds"]) / float(row["dense_milliseconds"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw it: `python -m examples.budget.front [TABLE [PICTURE]]`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    table, picture = [*given, *(TABLE, PICTURE)[len(given) :]]
    rows = [row for row in read_rows(Path(table)) if row["seed"] == "0"]
    draw(rows, _dense(Path(table)), picture)


def _dense(table: Path) -> float:
    """The dense network's accuracy, from the first line of the Markdown beside the table."""
    found = re.search(r"dense (0\.\d+)", table.with_name("table.md").read_text())
    if found is None:
        raise CompressionError(f"{table.with_name('table.md')}: does not say how accurate the dense network is.")
    return float(found[1])


if __name__ == "__main__":
    run_command(main)
