"""A study's table out of its store and into files that other programs read."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from tdcompress.deferred import DataFrame
from tdcompress.errors import CompressionError
from tdcompress.study.store import Store


def read(store: str | PathLike[str]) -> DataFrame:
    """All trials that were ever measured into a store, whichever study asked for them, one row each.

    Raises:
        CompressionError: there is no such store.
    """
    with Store(store, read_only=True) as opened:
        return opened.frame()


def export(table: DataFrame, path: str | PathLike[str]) -> Path:
    r"""Write a table as CSV (compressed for names such as `results.csv.gz`) or Parquet, by the name's ending.

    A file of that name is replaced in one step, so that nobody ever reads half of it.

    Args:
        table: as `Study.run` gives it.
        path: ends in `.csv`, `.csv.gz` or `.parquet`.

    Raises:
        CompressionError: another ending.
        ImportError: Parquet needs pyarrow, of the extra `study`.

    Example:
        >>> import pandas, tempfile
        >>> table = pandas.DataFrame({"layer": ["conv1"], "relative_weights": [0.25]})
        >>> export(table, f"{tempfile.mkdtemp()}/results.csv").read_text()
        'layer,relative_weights\nconv1,0.25\n'
    """
    path = Path(path)
    kinds = [ending for ending in (".csv", ".csv.gz", ".parquet") if path.name.endswith(ending)]
    if not kinds:
        raise CompressionError(f"{path}: a table is written as .csv, .csv.gz or .parquet.")
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        if kinds[0] == ".parquet":
            table.to_parquet(beside, index=False)
        else:
            table.to_csv(beside, index=False, lineterminator="\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
