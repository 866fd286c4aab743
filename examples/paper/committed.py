"""The studies that are committed with the documentation, one table a network."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from examples.paper.preset import ON_OUTPUTS
from tdcompress.errors import CompressionError

# The same trials of one network may lie in several folders, by level, method or layer.
_GRID = ("name", "layers", "methods", "ratios", "runs", "short", "fine_tuning")
_TRIAL = ["layer", "method", "ratio", "run"]


def studies(folder: Path) -> dict[str, pd.DataFrame]:
    """The trials of every network whose errors on outputs were measured, the networks in order of their names.

    Studies that differ only in their layers, methods and levels are put together; of those of one network that were
    made in other ways, on fewer test images for example, the one with the most trials is taken.

    Args:
        folder: of studies, each in a folder of its own, as `examples.paper.publish` leaves them.

    Returns:
        One row a trial, by the name of the network's preset.

    Raises:
        CompressionError: there is none.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for settings in sorted(folder.glob("*/settings.json")):
        table = _table(settings.parent)
        if table is None or not set(ON_OUTPUTS) <= set(table):
            continue
        choices = json.loads(settings.read_text(encoding="utf-8"))["choices"]
        network = choices["name"].removesuffix("-short")
        way = json.dumps({name: value for name, value in choices.items() if name not in _GRID}, sort_keys=True)
        ways = found.setdefault(network, {})
        ways[way] = table if way not in ways else pd.concat([ways[way], table], ignore_index=True)
    if not found:
        raise CompressionError(f"{folder} has no study with {' and '.join(ON_OUTPUTS)}; publish one first.")
    return {name: _largest(found[name]) for name in sorted(found)}


def _largest(ways: dict[str, pd.DataFrame]) -> pd.DataFrame:
    tables = [table.drop_duplicates(_TRIAL, ignore_index=True) for table in ways.values()]
    return max(tables, key=len)


def _table(folder: Path) -> pd.DataFrame | None:
    files = [folder / name for name in ("results.csv", "results.csv.gz")]
    return next((pd.read_csv(file) for file in files if file.exists()), None)
