"""A plan as a picture; matplotlib is imported where a plan is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from tdcompress.deferred import Figure
from tdcompress.planning.layer import LayerPlan
from tdcompress.planning.options import DENSE


def draw(layers: Sequence[LayerPlan], objective: str, metric: str) -> Figure:
    """One panel a layer: the least error at a share of its cost or below, a line a method, a cross at what was chosen.

    Args:
        layers: a plan's.
        objective: what the costs are of.
        metric: the name of the error.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(3 * columns + 0.4, 2.2 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    methods = list(dict.fromkeys(o.method for entry in layers for o in entry.options if o.method != DENSE))
    for panel, entry in zip(panels.flat, layers, strict=False):
        for number, method in enumerate(methods):
            shares, errors = _envelope(entry, method)
            panel.plot(shares, errors, color=f"C{number}", linewidth=1.2, label=method)
        choice = entry.choice
        share = choice.cost / entry.dense.cost
        panel.plot([share], [choice.error], "kX", markersize=7, label="chosen", clip_on=False, zorder=3)
        panel.set_title(f"{entry.layer}: {choice.method}", fontsize="medium")
        panel.set_xlim(0, 1)
    for panel in panels.flat[len(layers) :]:
        panel.set_visible(False)
    for place, panel in enumerate(panels.flat[: len(layers)]):
        if place + columns >= len(layers):  # nothing is below it
            panel.set_xlabel(f"share of {objective} kept")
            panel.tick_params(labelbottom=True)
    figure.supylabel(metric.replace("_", " "), fontsize="medium")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2 * columns)
    return figure


def _envelope(entry: LayerPlan, method: str) -> tuple[list[float], list[float]]:
    """Shares of the layer's cost, and the least error that the method has there or below."""
    found = sorted((o.cost / entry.dense.cost, o.error) for o in entry.options if o.method == method)
    return [share for share, _ in found], list(accumulate((error for _, error in found), min))
