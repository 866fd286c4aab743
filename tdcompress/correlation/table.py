"""A table of trials, checked, and cut into the groups within which trials are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from typing import Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from tdcompress.deferred import DataFrame
from tdcompress.errors import CompressionError

Table: TypeAlias = Union[  # noqa: UP007, what is deferred is no type yet, and knows no |
    DataFrame, Mapping[str, Sequence[Any]], Sequence[Mapping[str, Any]], str, PathLike[str]
]
VARIED = ("layer", "method", "ratio")  # what a study varies, and what `across` chooses from


@dataclass(frozen=True)
class Groups:
    """The rows that are compared with each other.

    Attributes:
        rows: row numbers by what the group's rows have in common, in the order of `held`.
        held: the columns that are constant within a group; the run, if there is one, is the first.
        across: those that vary.
        columns: the numbers of each column that was asked for, (rows,).
        trials: for each row, the number of its layer, method and ratio; the runs of a trial share it, (rows,).
        layers: for each row, the number of its layer, (rows,).
        run: the column that tells repetitions apart; None if there is none.
    """

    rows: dict[tuple[Any, ...], list[int]]
    held: tuple[str, ...]
    across: tuple[str, ...]
    columns: dict[str, NDArray[np.float64]]
    trials: NDArray[np.intp]
    layers: NDArray[np.intp]
    run: str | None

    def run_of(self, label: tuple[Any, ...]) -> Any:
        """The run that a group belongs to; None if the table is one run."""
        return None if self.run is None else label[0]

    def name(self, label: tuple[Any, ...]) -> str:
        """A group in words."""
        return describe(dict(zip(self.held, label, strict=True))) or "the whole table"


def grouped(table: Table, columns: Iterable[str], across: str | Iterable[str], run: str | None) -> Groups:
    """Read a table, check it, and cut it into groups.

    Args:
        table: one row a trial, as `correlate` takes it.
        columns: the columns of numbers that are needed.
        across: what varies within a group.
        run: the column that tells repetitions apart, or None.

    Raises:
        CompressionError: see `correlate`.
    """
    across, columns = checked_across(across, run), list(columns)
    frame = _frame(table)
    keys = [*([] if run is None else [run]), *(name for name in VARIED if name != run)]
    _check_columns(frame, [*keys, *columns])
    trials = _trials(frame, keys)
    numbers = {column: _numbers(frame, column, trials) for column in columns}
    held = tuple(key for key in keys if key not in across)
    rows: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row, trial in enumerate(trials):
        rows[tuple(trial[key] for key in held)].append(row)
    varied = [key for key in VARIED if key != run]
    cells = _numbered([tuple(trial[key] for key in varied) for trial in trials])
    layers = _numbered([(trial["layer"],) for trial in trials])
    return Groups(dict(rows), held, across, numbers, cells, layers, run)


def _numbered(labels: Sequence[tuple[Any, ...]]) -> NDArray[np.intp]:
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return np.array([numbers[label] for label in labels], dtype=np.intp)


def checked_across(across: str | Iterable[str], run: str | None) -> tuple[str, ...]:
    """What varies within a group, in the order of `VARIED`."""
    names = (across,) if isinstance(across, str) else tuple(across)
    unknown = [name for name in names if name not in VARIED]
    if unknown or not names:
        complaint = f"has {_with_close_names(unknown, VARIED)}" if unknown else "is empty"
        raise CompressionError(f"across {complaint}; it takes one or more of {', '.join(VARIED)}")
    if run in names:
        raise CompressionError(f"run={run!r} is fixed within a run, so it cannot be in across={names} too")
    return tuple(name for name in VARIED if name in names)


def _frame(table: Any) -> DataFrame:
    try:
        import pandas as pd
    except ImportError as problem:
        raise ImportError("correlate reads tables with pandas: pip install tdcompress[study]") from problem
    try:
        if isinstance(table, (str, PathLike)):
            # Exactly: pandas before 3 is off in the last bit, which breaks ties; later ones warn of being asked.
            exact: dict[str, Any] = {"float_precision": "round_trip"} if int(pd.__version__.split(".")[0]) < 3 else {}
            frame = pd.read_csv(table, **exact)
        else:
            frame = pd.DataFrame(table)
    except (TypeError, ValueError) as problem:  # pandas' parser errors are ValueErrors
        raise CompressionError(f"pandas cannot read the table: {problem}") from problem
    if frame.empty:
        raise CompressionError("the table is empty: it has no row or no column")
    return frame


def _check_columns(frame: DataFrame, names: list[str]) -> None:
    there = list(frame.columns)
    wrong = [name for name in dict.fromkeys(names) if there.count(name) != 1]
    if wrong:
        advice = "; with run=None the table is one run" if names[0] in wrong and names[0] not in VARIED else ""
        raise CompressionError(
            f"the table needs exactly one column named {_with_close_names(wrong, there)}; "
            f"it has {', '.join(map(str, there))}{advice}"
        )


def _trials(frame: DataFrame, keys: list[str]) -> list[dict[str, Any]]:
    """What identifies each row, checked to be there and to occur once."""
    columns = [frame[key].to_numpy(dtype=object).tolist() for key in keys]  # a tenth of the time of to_dict("records")
    trials = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
    absent = np.flatnonzero(frame[keys].isna().any(axis=1).to_numpy())
    if len(absent):
        complaint = f"{len(absent)} of {len(trials)} rows lack one of {', '.join(keys)}"
        raise CompressionError(f"{complaint}, first row {absent[0]}: {describe(trials[absent[0]])}")
    repeated = np.flatnonzero(frame.duplicated(keys).to_numpy())
    if len(repeated):
        complaint = f"{len(repeated)} of {len(trials)} rows repeat a trial, first row {repeated[0]}"
        advice = "keep one of each, or name the column that tells them apart as run="
        raise CompressionError(f"{complaint}: {describe(trials[repeated[0]])}; {advice}")
    return trials


def _numbers(frame: DataFrame, column: str, trials: list[dict[str, Any]]) -> NDArray[np.float64]:
    try:
        numbers: NDArray[np.float64] = frame[column].to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as problem:
        raise CompressionError(f"column {column!r} must hold numbers: {problem}") from problem
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        complaint = f"{len(bad)} of {len(numbers)} rows have NaN or infinity in the column {column!r}"
        advice = "drop those trials or measure them again"
        raise CompressionError(f"{complaint}, first the trial {describe(trials[bad[0]])}; {advice}")
    return numbers


def describe(trial: Mapping[str, Any]) -> str:
    """What identifies a trial or a group, in words."""
    return ", ".join(f"{key}={value!r}" for key, value in trial.items())


def _with_close_names(names: list[str], known: Iterable[Any]) -> str:
    known = [str(name) for name in known]
    close = {name: get_close_matches(str(name), known, n=1) for name in names}
    return ", ".join(f"{name!r} (meant {hit[0]!r}?)" if hit else repr(name) for name, hit in close.items())
