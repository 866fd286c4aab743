"""The table of what is supported is made from the registry: `python -m tests.test_supported` prints it anew."""

from pathlib import Path

import torch
from torch import nn

import tdcompress as td
from tdcompress.layers.spec import KINDS
from tdcompress.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "supported.md"


def table():
    """Every kind of layer × method, tried out: how many stages it becomes, or that it is refused."""
    lines = ["| layer | " + " | ".join(f'`"{method}"`' for method in METHODS) + " |"]
    lines.append("| --- |" + " --- |" * len(METHODS))
    for kind in KINDS.values():
        cells = [tried(kind, method) for method in METHODS]
        lines.append(f"| `nn.{kind.__name__}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tried(kind, method):
    dense = kind(16, 16) if kind is nn.Linear else kind(16, 16, 3, stride=2, padding=1, groups=2)
    try:
        layer = td.decompose(dense, "", method, 0.3)
    except td.CompressionError:
        return "refused"
    x = torch.zeros(1, 16, *[5] * len(td.ConvSpec.of(dense).kernel_size))
    assert layer(x).shape == dense(x).shape
    return f"{len(layer)} layers"


def test_the_page_has_the_table_of_today():
    assert table() in PAGE.read_text(encoding="utf-8"), f"write this into {PAGE}:\n{table()}"


if __name__ == "__main__":
    print(table())
