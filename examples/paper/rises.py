"""How τ rises from one state of the networks to another: from decomposed to calibrated and fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

import tdcompress as td
from examples.paper.tables import MEASURES, markdown_table, spoken, units_of
from tdcompress.correlation.bootstrap import Unit
from tdcompress.study.groupings import Grouping, errors_of, groupings, performances_of
from tdcompress.study.states import strategies

_VIEWS = ("all", "layers", "methods")


def between_states(frame: pd.DataFrame) -> str:
    """τ of every error in every state of the network, with 95 % intervals, as Markdown; empty if there is one state.

    The intervals are by bootstrap over trials and over whole layers. The last columns are the paired bootstrap of how
    much higher τ is in the last state than in the first.
    """
    return "\n".join(line for measure in MEASURES for line in _of_states(frame, measure))


def views(frame: pd.DataFrame) -> list[Grouping]:
    """The groupings over all levels from 50 % on: all, layers, methods."""
    return [grouping for grouping in groupings(frame) if grouping.name in _VIEWS]


def rises(
    frame: pd.DataFrame, states: tuple[str, str], error: str, across: Sequence[str], units: Sequence[Unit]
) -> list[td.Comparison]:
    """How much higher the τ of an error is with the second of two performances than with the first, over each unit."""
    before, after = states
    compare = partial(td.compare, frame, after, before, error, across)  # τ is symmetric
    return [compare(bootstrap=td.Bootstrap(unit)) for unit in units]


def _of_states(frame: pd.DataFrame, measure: str) -> list[str]:
    shown = performances_of(frame, f"test_{measure}")
    for name in strategies(frame.columns):  # which have no order that a rise could be along
        shown.pop(f"after {name}", None)
    if len(shown) < 2:
        return []
    (before, first), *_, (after, last) = shown.items()
    units, body = units_of(frame), []
    for grouping in views(frame):
        part = grouping.of(frame)
        for error in errors_of(frame):
            cells = [grouping.title, spoken(error)]
            for column in shown.values():
                tau = td.correlate(part, error, column, grouping.across, bootstrap=td.Bootstrap("trials"))
                cells.append(f"{tau.mean:.2f} [{tau.low:.2f}, {tau.high:.2f}]")
            found = rises(part, (first, last), error, grouping.across, units)
            cells += [f"{found[0].difference:+.2f}", *(f"{rise.low:+.2f} .. {rise.high:+.2f}" for rise in found)]
            body.append(cells)
    header = ["across", "approximation error", *shown, "rise", *(f"95 %, over {unit}" for unit in units)]
    title = f"**τ-a with the test {MEASURES[measure]}, and its rise from {before} to {after}**"
    return [title, "", *markdown_table(header, body, left=2), ""]
