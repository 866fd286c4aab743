"""A plan as a picture; matplotlib is imported where a plan is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tdcompress.planning.options import DENSE

if TYPE_CHECKING:
    from tdcompress.deferred import Figure
    from tdcompress.planning.result import Plan


def draw(plan: Plan) -> Figure:
    """One panel a layer: the error against the share of its cost, a line a method, a cross at what was chosen."""
    from matplotlib.figure import Figure

    columns = min(4, len(plan.layers))
    rows = math.ceil(len(plan.layers) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    methods = list(dict.fromkeys(o.method for entry in plan.layers for o in entry.options if o.method != DENSE))
    for panel, entry in zip(panels, plan.layers, strict=False):
        for number, method in enumerate(methods):
            best: dict[float, float] = {}
            for option in entry.options:
                if option.method == method:
                    share = option.cost / entry.dense.cost
                    best[share] = min(option.error, best.get(share, math.inf))
            panel.plot(list(sorted(best)), [best[share] for share in sorted(best)], color=f"C{number}", label=method)
        choice = entry.choice
        panel.plot([choice.cost / entry.dense.cost], [choice.error], "kx", label="chosen", clip_on=False)
        panel.set_title(f"{entry.layer}: {choice.method}", fontsize="medium")
        panel.set_xlabel(f"{plan.objective} kept")
    for panel in list(figure.axes)[len(plan.layers) :]:
        panel.set_visible(False)
    figure.axes[0].set_ylabel(plan.metric)
    figure.axes[0].legend(fontsize="small")
    return figure
