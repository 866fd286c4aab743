"""Accuracy against parameters, a line for every way to spend the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from tdcompress.report.table import short_count

_COLOURS = 10  # of Matplotlib's cycle, which then begins again


def draw(rows: Sequence[Mapping[str, str]], dense: float, path: str | Path) -> None:
    """Without fine-tuning on the left, after it on the right if there was any.

    Args:
        rows: the table's rows, as text.
        dense: the accuracy of the network before.
        path: where to write the picture.
    """
    panels = {"accuracy": "no labels, no training", "fine_tuned": "after a short fine-tuning"}
    shown = {key: title for key, title in panels.items() if any(row[key] for row in rows)}
    figure = Figure(figsize=(11 if len(shown) > 1 else 8, 4.2), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for place, procedure in enumerate(dict.fromkeys(row["procedure"] for row in rows)):
            points = sorted(
                (int(row["parameters"]), float(row[key])) for row in rows if row["procedure"] == procedure and row[key]
            )
            dashes = "-" if place < _COLOURS else "--"
            axes.plot(*zip(*points, strict=True), dashes, marker="o", markersize=3, label=procedure)
        axes.axhline(dense, color="grey", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        sizes = sorted({float(row["ratio"]): int(row["parameters"]) for row in rows}.values())
        axes.set_xticks(sizes, [short_count(size) for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters of the whole network")
        axes.set_ylabel("test accuracy")
        axes.set_title(title)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 + len(shown),
                  fontsize="small")  # fmt: skip
    figure.savefig(path, dpi=110)
