"""The tables of the page "Which method when", from what is measured already: `python -m examples.which`.

Errors and times are read from `docs/benchmarks/`, accuracies from the studies in `docs/study/`. Only the multiply-adds
are computed here, in half a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import tdcompress as td
from examples.paper.tables import markdown_table
from examples.trained import trained_network

ROOT = Path(__file__).parents[1]
KEPT = ("50%", "25%", "10%")
METHODS = ("cp", "tucker", "tt", "svd", "btd", "ht", "tr")
MATRICES = ("svd", "kronecker", "ttm", "blr")
_TOGETHER = "\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}"


def read_tables(page: str) -> list[pd.DataFrame]:
    """The tables of a page in Markdown, every cell a string."""
    tables: list[list[list[str]]] = [[]]
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            tables[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif tables[-1]:
            tables.append([])
    return [pd.DataFrame(rows[2:], columns=rows[0]) for rows in tables if rows]


def multiply_adds(methods: Sequence[str] = METHODS, kept: Sequence[str] = KEPT) -> dict[tuple[str, str], float]:
    """Multiply-adds of GaripovNet's conv4 by each method, as shares of the dense layer's, by (method, kept).

    Args:
        methods: registered names.
        kept: shares of the parameters, as they are written in the tables.
    """
    model = trained_network("garipov-fmnist")
    inputs = torch.zeros(1, 128, 13, 13)
    shares = {}
    for method in methods:
        for share in kept:
            small = td.decompose(model.get_submodule("conv4"), "", method, 1 - float(share.rstrip("%")) / 100)
            cost = td.report(small, inputs).layers[0].cost.multiply_adds
            assert cost is not None
            shares[method, share] = cost[1] / cost[0]
    return shares


def convolutions(shares: Mapping[tuple[str, str], float]) -> str:
    """A line a method: stages, error, multiply-adds and time.

    Args:
        shares: the multiply-adds.
    """
    errors = read_tables("benchmarks/methods.md")[0].set_index("method")
    times = read_tables("benchmarks/forward.md")[1].set_index(["setting", "method"])
    layers = read_tables("supported.md")[0].set_index("layer").loc["`nn.Conv2d`"]
    names = ["error", "multiply-adds", "speed, channels last", "speed, contiguous"]
    body = []
    for method in METHODS:
        cells = [
            _TOGETHER.join(f"{float(errors.loc[method, f'{share} kept']):.2f}" for share in KEPT),
            _TOGETHER.join(f"{shares[method, share]:.0%}" for share in KEPT),
        ]
        for setting in ("channels last", "contiguous"):
            row = times.loc[(setting, method)]
            cells.append(_TOGETHER.join(f"{float(row[f'over dense, {share} kept']):.1f}" for share in KEPT))
        name = f'`"{method}"`'
        body.append([name, layers[name].split()[0], *cells])
    return _table(["method", "layers", *names], body)


def matrices() -> str:
    """The same for linear layers: geometric means over the layers of the benchmark."""
    columns = {"error": "error", "multiply-adds": "multiply-adds", "speed": "over dense"}
    table = read_tables("benchmarks/linear.md")[0]
    numbers = table[list(columns.values())].apply(lambda cells: cells.str.rstrip("%").astype(float))
    means = np.exp(np.log(numbers).groupby([table.method, table.kept]).mean())
    body = []
    for method in MATRICES:
        rows = [means.loc[(method, share)] for share in KEPT]
        best = [means.loc[("svd", share), "error"] for share in KEPT]
        cells = [
            _TOGETHER.join(f"{row['error'] / least:.2f}" for row, least in zip(rows, best, strict=True)),
            _TOGETHER.join(f"{row['multiply-adds']:.0f}%" for row in rows),
            _TOGETHER.join(f"{row['over dense']:.1f}" for row in rows),
        ]
        body.append([f'`"{method}"`', *cells])
    return _table(["method", *columns], body)


def trainability() -> str:
    """Mean test error of single layers replaced, before and after a short fine-tuning, in per cent."""
    ratios = {0.5: "50 % kept", 0.75: "25 % kept", 0.9: "10 % kept"}
    body = []
    for study, network in {"digits": "digits", "digits-resnet": "residual, digits"}.items():
        table = pd.read_csv(ROOT / "docs/study" / study / "results.csv")
        columns = [name for name in ("test_error", "finetuned_test_error") if name in table]
        means = table.groupby(["method", "ratio"])[columns].mean() * 100
        for method in [name for name in METHODS if name in set(table.method)]:
            cells = [" → ".join(f"{means.loc[(method, ratio), name]:.1f}" for name in columns) for ratio in ratios]
            body.append([network, f'`"{method}"`', *cells])
    return _table(["network", "method", *ratios.values()], body, left=2)


def _table(header: Sequence[str], body: Sequence[Sequence[str]], left: int | None = None) -> str:
    """A page's table; the columns after the first `left` are numbers, by default none is."""
    return "\n".join(markdown_table(header, body, len(header) if left is None else left)) + "\n"


def main(folder: Path = ROOT / "docs" / "which") -> None:
    """Write the three tables."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"convolutions": convolutions(multiply_adds()), "linear": matrices(), "trainability": trainability()}
    for name, table in tables.items():
        (folder / f"{name}.md").write_text(table, encoding="utf-8")
        print(f"{name}\n\n{table}")


if __name__ == "__main__":
    main()
