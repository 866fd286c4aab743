"""The table of what is supported is made from the registry: `python -m tests.test_supported` prints it anew."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tdcompress as td
from tdcompress.methods import METHODS
from tests.layers.strategies import NAMES, a_spec, an_input, fresh

PAGE = Path(__file__).parents[1] / "docs" / "supported.md"


def table():
    """Every kind of layer × method, tried out: how many stages it becomes, or that it is refused."""
    lines = ["| layer | " + " | ".join(f'`"{method}"`' for method in METHODS) + " |"]
    lines.append("| --- |" + " --- |" * len(METHODS))
    for kind in NAMES:
        cells = [tried(kind, method) for method in METHODS]
        lines.append(f"| `{spoken(kind)}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spoken(kind):
    """A kind as a user would import it."""
    return f"td.{kind}" if kind in ("TransposedLinear", "GroupedLinear") else kind if "." in kind else f"nn.{kind}"


def tried(kind, method):
    dense = fresh(a_spec(kind), torch.float32)
    try:
        layer: Any = td.decompose(dense, "", method, 0.3)
    except td.CompressionError:
        return "refused"
    x = an_input(dense, torch.float32)
    assert layer(x).shape == dense(x).shape
    return f"{len(layer)} layers"


@pytest.mark.full
def test_the_page_has_the_table_of_today():
    assert table() in PAGE.read_text(encoding="utf-8"), f"write this into {PAGE}:\n{table()}"


if __name__ == "__main__":
    print(table())
