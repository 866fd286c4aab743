"""The rows of a study's table, out of what its store keeps: what differs in the strategy alone is one row."""

from __future__ import annotations

from collections import Counter
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
    earlier = Counter[tuple[Any, ...]]()  # results of one strategy, whose versions differ: each is of another row
    for key, at, measured in results:
        whole, strategy = parts.get(key, (key, ""))
        asked = (whole, *at, strategy)
        row = rows.setdefault((whole, *at, earlier[asked]), dict(zip(GRID, at, strict=True)))
        earlier[asked] += 1
        seconds = row.get("seconds", 0.0) + measured.get("seconds", 0.0)
        row |= {name: value for name, value in measured.items() if name not in row}
        row |= {"seconds": seconds} if "seconds" in measured else {}
    return list(rows.values())
