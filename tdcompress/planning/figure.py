"""A plan as a picture; matplotlib is imported where a plan is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tdcompress.deferred import Figure
from tdcompress.planning.layer import LayerPlan
from tdcompress.planning.options import DENSE


def draw(layers: Sequence[LayerPlan], objective: str, metric: str) -> Figure:
    """One panel a layer: the error against the share of its cost, a line a method, a cross at what was chosen.

    Args:
        layers: a plan's.
        objective: what the costs are of.
        metric: the name of the error.
    """
    from matplotlib.figure import Figure

    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    methods = list(dict.fromkeys(o.method for entry in layers for o in entry.options if o.method != DENSE))
    for panel, entry in zip(panels, layers, strict=False):
        for number, method in enumerate(methods):
            best: dict[float, float] = {}
            for option in entry.options:
                if option.method == method:
                    share = option.cost / entry.dense.cost
                    best[share] = min(option.error, best.get(share, math.inf))
            panel.plot(sorted(best), [best[share] for share in sorted(best)], color=f"C{number}", label=method)
        choice = entry.choice
        panel.plot([choice.cost / entry.dense.cost], [choice.error], "kx", label="chosen", clip_on=False)
        panel.set_title(f"{entry.layer}: {choice.method}", fontsize="medium")
        panel.set_xlabel(f"{objective} kept")
    for panel in list(figure.axes)[len(layers) :]:
        panel.set_visible(False)
    figure.axes[0].set_ylabel(metric)
    figure.axes[0].legend(fontsize="small")
    return figure
