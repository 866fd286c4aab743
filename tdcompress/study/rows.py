"""The rows of a study's table, out of what its store keeps: what differs in the strategy alone is one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tdcompress.study.grid import Trial

GRID = ("layer", "method", "ratio", "run")


def coordinates(trial: Trial) -> tuple[str, str, float, int]:
    """Where a trial is in the grid: the columns `GRID`."""
    return trial.layer, trial.method, float(trial.ratio), trial.run


def joined(
    results: Iterable[tuple[str, Sequence[Any], dict[str, Any]]], parts: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """The rows of results, given as key, coordinates and measurements; see `Store.frame`.

    What several strategies share is the first one's; the seconds are added up.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for key, at, measured in results:
        whole, strategy = parts.get(key, (key, ""))
        number = 0  # of the results of one strategy, whose versions differ
        while strategy in rows.get((whole, *at, number), {}).get("strategies", ()):
            number += 1
        row = rows.setdefault((whole, *at, number), {"strategies": set(), **dict(zip(GRID, at, strict=True))})
        seconds = row.get("seconds", 0.0) + measured.get("seconds", 0.0)
        row |= {name: value for name, value in measured.items() if name not in row}
        row |= {"seconds": seconds} if "seconds" in measured else {}
        row["strategies"].add(strategy)
    return [{name: value for name, value in row.items() if name != "strategies"} for row in rows.values()]
