"""Error and accuracy against the share that is kept, a line for every way."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.reshaping.trials import HIDDEN

_COLOURS = {"svd": "black", "kronecker": "tab:blue", "ttm": "tab:orange", "blr": "tab:green"}


def draw(frame: pd.DataFrame, dense: pd.Series, path: str | Path) -> None:
    """The relative error of every layer's weight, and the accuracy with both hidden layers replaced.

    Args:
        frame: the trials.
        dense: the test error of the dense networks, by run.
        path: where to write the picture.
    """
    layers = list(frame.layer.unique())
    figure = Figure(figsize=(3.6 * len(layers), 3.8), layout="constrained")
    for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
        some = frame[frame.layer == layer]
        if layer == HIDDEN:
            _lines(axes, some.assign(accuracy=1 - some.test_error), "accuracy")
            axes.axhline(1 - dense.mean(), color="grey", linewidth=0.8, linestyle="--")
            axes.set_ylabel("test accuracy")
        else:
            _lines(axes, some, "relative_weights")
            axes.set_ylabel("relative error of the weight")
        axes.set_title(layer)
        axes.set_xlabel("share of the weights removed")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=110)


def _lines(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    for way in frame.method.unique():
        means = frame[frame.method == way].groupby("ratio")[column].mean()
        method, _, shape = way.partition(", ")
        axes.plot(
            means.index,
            means.to_numpy(),
            marker="o",
            markersize=3,
            label=way,
            color=_COLOURS[method],
            linestyle=":" if shape == "balanced" else "-",
        )
