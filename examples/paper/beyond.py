"""Beyond 90 %: where each error loses its grip, by method, and where the network breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import tdcompress as td
from examples.paper.subsets import performance
from examples.paper.tables import MEASURES, markdown_table, spoken
from tdcompress.study.drawing import style_of
from tdcompress.study.groupings import HIGH, errors_of

_FAR = 0.95  # a study is asked from here on
_LEAST = 6  # layers, from which on an interval over them says something
_GUESSED = {"test_error": 0.9, "test_bits_per_byte": 8.0}  # of ten classes, of 256 bytes


def by_level(table: pd.DataFrame, bootstrap: td.Bootstrap) -> pd.DataFrame:
    """τ-a across layers of every error, at every level from 50 % on, for every method by itself.

    Args:
        table: one row a trial, before fine-tuning.
        bootstrap: of the intervals, over layers.

    Returns:
        One row a level, method and error: `ratio`, `method`, `layers` (how many can be compressed as far), `error`,
        `tau`, `low`, `high`, and over these layers the `median` performance, the `worst`, and how many are `broken`:
        more than half of the way from the best trial of the table to guessing.
    """
    against, column = performance(table), measure_of(table)
    limit = (table[column].min() + _GUESSED[column]) / 2
    rows = []
    for (ratio, method), part in table[table["ratio"] >= HIGH].groupby(["ratio", "method"]):
        count = part["layer"].nunique()
        if count < _LEAST:
            continue
        values = part.groupby("layer")[column].mean()
        damage = {"median": values.median(), "worst": values.max(), "broken": int((values > limit).sum())}
        for error in errors_of(table):
            tau = td.correlate(part, error, against, "layer", bootstrap=bootstrap)
            known = {"ratio": ratio, "method": method, "layers": count, "error": error}
            rows.append({**known, "tau": tau.mean, "low": tau.low, "high": tau.high, **damage})
    return pd.DataFrame(rows)


def measure_of(table: pd.DataFrame) -> str:
    """The column that says whether a network is broken."""
    return next(column for column in _GUESSED if column in table)


def report(folder: Path, tables: Mapping[str, pd.DataFrame], bootstrap: td.Bootstrap | None = None) -> list[Path]:
    """Write `beyond.md` and draw `beyond-NETWORK.png`, for the networks with six layers and more, and levels from 95 %.

    Args:
        folder: for both.
        tables: the trials of each network.
        bootstrap: of the intervals; 2 000 draws of layers by default.
    """
    lines: list[str] = []
    pictures = []
    for network, table in tables.items():
        found = by_level(table, bootstrap or td.Bootstrap("layers"))
        if found.empty or found["ratio"].max() < _FAR:
            continue
        lines += _section(network, found, measure_of(table))
        pictures.append(folder / f"beyond-{network}.png")
        _draw(found, measure_of(table), pictures[-1])
    if not pictures:
        return []
    (folder / "beyond.md").write_text("\n".join(lines), encoding="utf-8")
    return [folder / "beyond.md", *pictures]


def _section(network: str, found: pd.DataFrame, column: str) -> Iterator[str]:
    """One network's table: what is in italics cannot be told from no order at all."""
    measure = MEASURES[column.removeprefix("test_")]
    errors = list(dict.fromkeys(found["error"]))
    yield from (f"**{network}: τ-a across layers with the cross-entropy, by level and method**", "")
    header = ["removed", "method", "layers", *map(spoken, errors), f"median {measure}", "worst", "broken"]
    body = []
    for (ratio, method), part in found.groupby(["ratio", "method"]):
        first = part.iloc[0]
        cells = [_tau(row) for row in part.itertuples()]
        damage = [_shown(first["median"], column), _shown(first["worst"], column), f"{first['broken']}"]
        body.append([f"{100 * ratio:.0f} %", str(method), f"{first['layers']}", *cells, *damage])
    yield from (*markdown_table(header, body, left=2), "")


def _tau(row: Any) -> str:
    return f"{row.tau:.2f}" if row.low > 0 or row.high < 0 else f"*{row.tau:.2f}*"


def _shown(value: float, column: str) -> str:
    return f"{100 * value:.1f} %" if column == "test_error" else f"{value:.2f}"


def _draw(found: pd.DataFrame, column: str, file: Path) -> None:
    """A column a method: τ of every error by level, and below what the layers' compressions cost."""
    methods, errors = (list(dict.fromkeys(found[name])) for name in ("method", "error"))
    figure = Figure(figsize=(2.6 * len(methods) + 2, 6), layout="constrained")
    axes = list(figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False).flat)
    ratios = sorted(found["ratio"].unique())
    for place, method in enumerate(methods):
        upper, lower = axes[place], axes[len(methods) + place]
        part = found[found["method"] == method]
        for number, error in enumerate(errors):
            line = part[part["error"] == error]
            colour, marker = style_of(number)
            upper.plot(_places(line, ratios), line["tau"], marker=marker, color=colour, label=spoken(error))
        upper.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        upper.set_title(method)
        _damage(lower, part.drop_duplicates("ratio"), ratios)
        lower.set_xticks(range(len(ratios)), [f"{100 * ratio:.0f}" for ratio in ratios])
        lower.set_xlabel("% removed")
    axes[0].set_ylabel("τ-a across layers")
    axes[len(methods)].set_ylabel(f"test {MEASURES[column.removeprefix('test_')]}")
    handles = [*axes[0].get_legend_handles_labels()[0], *axes[len(methods)].get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.savefig(file, dpi=130)


def _damage(axis: Axes, levels: pd.DataFrame, ratios: list[float]) -> None:
    axis.plot(_places(levels, ratios), levels["median"], color="black", label="median layer")
    axis.plot(_places(levels, ratios), levels["worst"], color="black", linestyle=":", label="worst layer")


def _places(rows: pd.DataFrame, ratios: list[float]) -> list[int]:
    return [ratios.index(ratio) for ratio in rows["ratio"]]
