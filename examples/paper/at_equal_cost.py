"""Decompositions side by side, at equal parameters and at equal time: `python -m examples.paper.at_equal_cost`.

It reads a study of several methods and times its compressed layers, each beside the dense one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

import tdcompress as td
from examples.command import run_command
from examples.paper.publish import DOCS
from examples.paper.rises import views
from examples.paper.tables import MEASURES, markdown_table, spoken
from examples.paper.training import evaluate
from examples.trained import trained
from tdcompress.methods import get_method
from tdcompress.report.measuring import as_call, layer_calls, median_milliseconds
from tdcompress.study.drawing import MARKERS, METHOD_COLOURS, logarithmic
from tdcompress.study.groupings import errors_of
from tdcompress.threads import on_threads

STUDY = DOCS / "garipov-fmnist-methods"
PAPER = ("cp", "tucker", "tt")  # the methods of the paper
SHARES = (0.75, 0.5, 0.4)  # of the dense layer's time
_BATCH = 32
_ROUNDS = 15
_LAYER = ["layer", "method", "ratio"]
_ERROR, _TEST, _ENTROPY = "relative_weights", "test_error", "test_cross_entropy"


def times_of(table: pd.DataFrame, model: nn.Module, inputs: torch.Tensor) -> pd.DataFrame:
    """The time of every compressed layer as a share of the dense one's, in the contiguous format.

    The time of a layer depends on its ranks and not on how well it was solved for, so it is solved for as for a plan.

    Args:
        table: one row a trial, with `layer`, `method`, `ratio` and `rank`.
        model: the network, in evaluation mode.
        inputs: what the network is called with, (N, C, H, W).

    Returns:
        One row a layer, method and ratio, with `milliseconds`, `dense_milliseconds` and `share`.
    """
    layers = {name: model.get_submodule(name) for name in dict.fromkeys(table["layer"])}
    calls = layer_calls(model, layers, as_call(inputs))
    rows = []
    for row in table.drop_duplicates(_LAYER).to_dict("records"):
        dense = layers[row["layer"]]
        small = _layer(dense, row["method"], row["ratio"], str(row["rank"])).eval()
        (call,) = calls[row["layer"]]
        before, after = median_milliseconds(partial(call.on, dense), partial(call.on, small), rounds=_ROUNDS)
        known = {name: row[name] for name in _LAYER}
        rows.append(known | {"milliseconds": after, "dense_milliseconds": before, "share": after / before})
    return pd.DataFrame(rows)


def _layer(dense: nn.Module, method: str, ratio: float, rank: str) -> nn.Module:
    """A layer as the study had it, in shape."""
    kind = get_method(method)
    solver = kind.quick(kind.options())
    small = kind.from_conv(dense, ratio=ratio, solver=solver)  # which finds the order of the axes, too
    wanted = tuple(int(part) for part in rank.split("x"))
    return small if small.ranks == wanted else kind.from_conv(dense, rank=wanted, solver=solver)


def at_share(table: pd.DataFrame, column: str, share: float) -> pd.DataFrame:
    """What a method reaches in each layer if it may take a share of the dense layer's time.

    Between the levels of the study it is interpolated, after slower trials that are no better than a faster one have
    been left out. Beyond its fastest trial a method has no number.

    Args:
        table: one row a trial, with `share`.
        column: an error or a performance, of which less is better.
        share: of the dense layer's time.

    Returns:
        One row a layer, one column a method; NaN where all its trials are slower.
    """
    cells: dict[str, dict[str, float]] = {}
    for (method, layer), part in table.groupby(["method", "layer"], sort=False):
        ordered = part.sort_values("share")
        best = ordered[ordered[column] <= ordered[column].cummin()]
        reached = share >= best["share"].min()
        cells.setdefault(method, {})[layer] = np.interp(share, best["share"], best[column]) if reached else np.nan
    return pd.DataFrame(cells)


def as_markdown(table: pd.DataFrame, dense_error: float) -> str:
    """All tables of the page.

    Args:
        table: one row a trial, with `share`.
        dense_error: the test classification error of the uncompressed network.
    """
    parts = [_orders(table), _by_level(table), _by_time(table, dense_error), _winners(table)]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _orders(table: pd.DataFrame) -> Iterator[str]:
    """τ of every error over all methods, and over the paper's three."""
    yield from ("**Kendall's τ-a of each error before fine-tuning, over all methods and over the paper's three**", "")
    few = table[table["method"].isin(PAPER)]
    measures = [measure for measure in MEASURES if f"test_{measure}" in table]
    header = ["across", "approximation error"]
    for measure in measures:
        header += [f"{MEASURES[measure]}, {table['method'].nunique()} methods", "the paper's three"]
    body = []
    for grouping, error in product(views(table), errors_of(table)):
        cells = [grouping.title, spoken(error)]
        for measure in measures:
            cells += [_tau(grouping.of(some), error, f"test_{measure}", grouping.across) for some in (table, few)]
        body.append(cells)
    yield from markdown_table(header, body, left=2)


def _tau(table: pd.DataFrame, error: str, performance: str, across: Sequence[str]) -> str:
    tau = td.correlate(table, error, performance, across, bootstrap=td.Bootstrap("trials"))
    return f"{tau.mean:.2f} [{tau.low:.2f}, {tau.high:.2f}]"


def _by_level(table: pd.DataFrame) -> Iterator[str]:
    """Error, accuracy and time at equal parameters, means over the layers."""
    yield from ("**At equal parameters: relative weight error (geometric mean over layers), test classification error",)
    yield from ("in % and share of the dense layer's time (means over layers)**", "")
    ratios = sorted(table["ratio"].unique())
    body = []
    for method, part in table.groupby("method", sort=False):
        by_level = part.groupby("ratio")
        errors, tests, shares = (
            np.exp(by_level[_ERROR].agg(_mean_log)),
            by_level[_TEST].mean(),
            by_level["share"].mean(),
        )
        body.append([f"`{method}`", *(f"{errors[r]:.3f}, {100 * tests[r]:.2f}, {shares[r]:.2f}" for r in ratios)])
    yield from markdown_table(["method", *(f"{100 * ratio:.0f} % removed" for ratio in ratios)], body)


def _mean_log(values: pd.Series) -> float:
    return float(np.log(values).mean())


def _by_time(table: pd.DataFrame, dense_error: float) -> Iterator[str]:
    """Error and accuracy at equal time, over the layers that every method can make as fast."""
    yield from (
        "**At equal time of a layer: relative weight error (geometric mean) and test classification error in %,",
    )
    yield from (
        f"over the layers that all methods can make so fast; the dense network has {100 * dense_error:.2f}**",
        "",
    )
    columns = []
    for share in SHARES:
        errors, tests = (at_share(table, column, share).dropna() for column in (_ERROR, _TEST))
        columns.append((share, len(errors), np.exp(np.log(errors).mean()), tests.mean()))
    header = ["method", *(f"{share:.0%} of the time ({count} layers)" for share, count, _, _ in columns)]
    body = []
    for method in dict.fromkeys(table["method"]):
        cells = [f"{error[method]:.3f}, {100 * test[method]:.2f}" if count else "" for _, count, error, test in columns]
        body.append([f"`{method}`", *cells])
    yield from markdown_table(header, body)


def _winners(table: pd.DataFrame) -> Iterator[str]:
    """Which method has the least error, and which the least cross-entropy, by layer and level and by layer and time."""
    yield from ("**Which wins: least relative weight error / least test cross-entropy**", "")
    ratios = sorted(table["ratio"].unique())
    body = []
    for layer, part in table.groupby("layer", sort=False):
        cells = [_least(part[part["ratio"] == ratio].groupby("method").mean(numeric_only=True)) for ratio in ratios]
        for share in SHARES:
            reached = {column: at_share(part, column, share).loc[layer] for column in (_ERROR, _ENTROPY)}
            cells.append(_least(pd.DataFrame(reached).dropna()))
        body.append([f"`{layer}`", *cells])
    header = [f"{100 * ratio:.0f} % removed" for ratio in ratios] + [f"{share:.0%} of the time" for share in SHARES]
    yield from markdown_table(["layer", *header], body)


def _least(means: pd.DataFrame) -> str:
    return " / ".join(str(means[column].idxmin()) for column in (_ERROR, _ENTROPY)) if len(means) else ""


def draw(table: pd.DataFrame, dense_error: float, file: Path) -> None:
    """Error and accuracy against parameters and against time, a line a method."""
    figure = Figure(figsize=(10, 7), layout="constrained", facecolor="white")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for place, (method, part) in enumerate(table.groupby("method", sort=False)):
        means = part.groupby("ratio").agg(
            error=(_ERROR, _mean_log), test=(_TEST, "mean"), kept=("kept", "mean"), share=("share", "mean")
        )
        style = {"color": METHOD_COLOURS[place], "marker": MARKERS[place], "markersize": 5, "label": method}
        for column, cost in enumerate(("kept", "share")):
            axes[0, column].plot(100 * means[cost], np.exp(means["error"]), **style)
            axes[1, column].plot(100 * means[cost], 100 * means["test"], **style)
    for axis in axes.flat:
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.axhline(100 * dense_error, color="0.4", linestyle="--", linewidth=0.8, label="dense")
        logarithmic(axis)
    axes[0, 0].set_ylabel("relative weight error")
    axes[1, 0].set_ylabel("test classification error, %")
    axes[1, 0].set_xlabel("parameters of the layer kept, %")
    axes[1, 1].set_xlabel("time of the layer, % of dense")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(file, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`. Times that the folder has already are not taken again."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper.at_equal_cost", description=__doc__)
    parser.add_argument("--study", type=Path, default=STUDY, help="folder of a published study")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch, while times are taken")
    options = parser.parse_args(arguments)
    folder: Path = options.study
    table, network = _read(folder)
    model, splits = trained(network)
    times = folder / "times.csv"
    if not times.exists():
        with torch.no_grad(), on_threads(options.threads):
            found = times_of(table, model, splits.test.images[:_BATCH])
        found.round(4).to_csv(times, index=False)
    table = table.merge(pd.read_csv(times), on=_LAYER)
    dense_error = evaluate(model, splits.test.images, splits.test.labels).error
    (folder / "equal.md").write_text(as_markdown(table, dense_error), encoding="utf-8")
    draw(table, dense_error, folder / "equal.png")
    print(f"In {folder}: times.csv, equal.md, equal.png")


def _read(folder: Path) -> tuple[pd.DataFrame, str]:
    """A study's trials, and the name of its network.

    Raises:
        CompressionError: there is no study in the folder.
    """
    try:
        table = pd.read_csv(folder / "results.csv")
        choices = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["choices"]
    except OSError as error:
        raise td.CompressionError(f"{folder} has no study ({error}); see python -m examples.paper.publish.") from error
    return table, choices["name"]


if __name__ == "__main__":
    run_command(main)
