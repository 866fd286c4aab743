"""Which error to trust, over all networks that were studied: `python -m examples.paper.answer`.

Reads the tables of `docs/study/` and writes `answer.md` and `answer.png` there, and what becomes of the levels beyond
90 %.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from examples.paper import beyond
from examples.paper.committed import studies
from examples.paper.networks import BASE, GROUPINGS, LEVELS, WANTED, Studies, duels, regrets, taus
from examples.paper.publish import DOCS
from examples.paper.tables import MEASURES, markdown_table, spoken
from tdcompress.errors import CompressionError
from tdcompress.study.drawing import MARKERS, METHOD_COLOURS, panels


def as_markdown(tables: Studies, found: pd.DataFrame, close: pd.DataFrame, costs: pd.DataFrame) -> str:
    """All tables: what `taus`, `duels` and `regrets` found; in how many networks an error is ahead comes first."""
    lines = [in_words(found), "", *_networks(tables)]
    for measure in WANTED:
        for across in GROUPINGS:
            part = found[(found["measure"] == measure) & (found["across"] == across)]
            lines += ["", f"**τ-a with the test {measure}, {_asked(across)}**", ""]
            lines += _wide(part, lambda row: f"{row.tau:.2f} [{row.low:.2f}, {row.high:.2f}]")
    for across in ("all", "layers"):
        part = found[(found["measure"] == "cross-entropy") & (found["across"] == across) & (found["error"] != BASE)]
        lines += ["", f"**τ-a with the cross-entropy less that of relative weights, {_asked(across)}**", ""]
        lines += _wide(part, _rise)
    for across, part in close.groupby("across", sort=False):
        lines += ["", f"**The close ones: τ-a with the cross-entropy, paired, {_asked(str(across))}**", ""]
        lines += _wide(part, _rise)
    for among, part in costs.groupby("among", sort=False):
        lines += ["", f"**Regret of choosing among {among} by an error, at the same other two**", ""]
        lines += _wide(pd.concat([part, _by_lot(part)]), _cost)
    return "\n".join(lines) + "\n"


def in_words(found: pd.DataFrame) -> str:
    """In how many networks an error is above relative weights, and in how many that is settled."""
    sentences = []
    for across in ("all", "layers"):
        part = found[(found["measure"] == "cross-entropy") & (found["across"] == across)]
        networks = part["network"].nunique()
        for error in [one for one in dict.fromkeys(part["error"]) if one != BASE]:
            rises = part[part["error"] == error]
            settled, fallen = int((rises["rise_low"] > 0).sum()), int((rises["rise_high"] < 0).sum())
            above = int((rises["rise"] > 0).sum())
            sentences.append([_asked(across), spoken(error), f"{above} of {networks}", str(settled), str(fallen)])
    header = ["", "error", "above relative weights", "settled", "settled below"]
    title = "**In how many networks an error has a higher τ with the cross-entropy than relative weights**"
    return "\n".join([title, "", *markdown_table(header, sentences, left=2)])


def draw(found: pd.DataFrame, file: Path) -> None:
    """One picture: τ with the cross-entropy of every error in every network, over all trials and across layers."""
    part = found[found["measure"] == "cross-entropy"]
    networks = list(dict.fromkeys(part["network"]))
    means = part[part["across"] == "layers"].groupby("error")["tau"].mean().sort_values(ascending=False)
    errors = list(means.index)
    figure, axes = panels(2, width=4.6)
    figure.set_figheight(1.4 + 0.55 * len(errors))
    for axis, across in zip(axes, ("all", "layers"), strict=True):
        for place, network in enumerate(networks):
            rows = part[(part["network"] == network) & (part["across"] == across)].set_index("error").loc[errors]
            heights = [n + (place - (len(networks) - 1) / 2) / (1.5 * len(networks)) for n in range(len(errors))]
            colour, marker = METHOD_COLOURS[place % len(METHOD_COLOURS)], MARKERS[place % len(MARKERS)]
            axis.hlines(heights, rows["low"], rows["high"], color=colour, linewidth=1, alpha=0.6)
            axis.plot(rows["tau"], heights, marker, color=colour, markersize=5, label=network)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.grid(axis="x", color="0.9")
        axis.locator_params(axis="x", nbins=6)  # more of them run into each other
        axis.set_title(_asked(across))
        axis.set_xlabel("Kendall's τ-a with the cross-entropy")
    axes[0].set_yticks(range(len(errors)), [spoken(error) for error in errors])
    axes[0].invert_yaxis()
    figure.legend(handles=axes[0].get_legend_handles_labels()[0], loc="outside right center", frameon=False)
    figure.savefig(file, dpi=150)


def _asked(across: str) -> str:
    return "over all trials" if across == "all" else f"across {across}"


def _networks(tables: Studies) -> Iterator[str]:
    header = ["network", "layers", "methods", "levels", "trials", "performance"]
    body = []
    for network, table in tables.items():
        part = table[table["ratio"].isin(LEVELS)]
        levels = ", ".join(f"{100 * ratio:.0f}" for ratio in sorted(part["ratio"].unique()))
        measures = [MEASURES[one] for one in MEASURES if f"test_{one}" in table]
        methods = ", ".join(dict.fromkeys(part["method"]))
        cells = [network, str(part["layer"].nunique()), methods, f"{levels} %", str(len(part)), " and ".join(measures)]
        body.append(cells)
    yield from markdown_table(header, body, left=6)


def _wide(rows: pd.DataFrame, cell: Callable[[Any], str]) -> list[str]:
    """An error a line, a network a column."""
    networks, errors = (list(dict.fromkeys(rows[name])) for name in ("network", "error"))
    cells = {(row.error, row.network): cell(row) for row in rows.itertuples()}
    body = [[spoken(error), *(cells.get((error, network), "") for network in networks)] for error in errors]
    return markdown_table(["", *networks], body)


def _rise(row: Any) -> str:
    text = f"{row.rise:+.2f} [{row.rise_low:+.2f}, {row.rise_high:+.2f}]"
    return f"**{text}**" if row.rise_low > 0 or row.rise_high < 0 else text


def _cost(row: Any) -> str:
    scale, unit = (1, " bits") if row.column == "test_bits_per_byte" else (100, "")
    interval = "" if pd.isna(row.low) else f" [{scale * row.low:.2f}, {scale * row.high:.2f}]"
    return f"{scale * row.mean:.2f}{interval}{unit}"


def _by_lot(costs: pd.DataFrame) -> pd.DataFrame:
    return costs.drop_duplicates("network").assign(error="by lot", mean=costs["chance"], low=math.nan, high=math.nan)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper.answer", description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=Path, default=DOCS, help="folder of studies; docs/study by default")
    options = parser.parse_args(arguments)
    try:
        tables = studies(options.studies)
    except CompressionError as error:
        print("error:", error, file=sys.stderr)
        return 2
    found = taus(tables)
    text = as_markdown(tables, found, duels(tables), regrets(tables))
    (options.studies / "answer.md").write_text(text, encoding="utf-8")
    draw(found, options.studies / "answer.png")
    files = ["answer.md", "answer.png", *(file.name for file in beyond.report(options.studies, tables))]
    print(f"In {options.studies}:", ", ".join(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
