"""What is in a study's SQLite file: its tables, and its values as JSON; read as from a file that nobody vouches for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdcompress.errors import CompressionError

APPLICATION = 0x74646373  # "tdcs", where SQLite keeps what kind of file it is
VERSION = 1
SCHEMA = (
    # What was asked.
    "create table trials (layer text not null, method text not null, ratio real not null, run integer not null, "
    "key text not null, unique (layer, method, ratio, run, key))",
    # What was found; several trials may have one result.
    "create table results (key text primary key, measured text, traceback text, environment text not null, "
    "ended text not null default current_timestamp) without rowid",
    "create table baselines (key text primary key, measured text not null) without rowid",
    f"pragma application_id = {APPLICATION}",
    f"pragma user_version = {VERSION}",
)
# Which results are one row: those of several strategies. Files from before there were any get it when they are next
# written to, and are read without.
PARTS = (
    "create table if not exists parts (key text primary key, whole text not null, strategy text not null) without rowid"
)


def _as_kept(statement: str) -> str:
    """A statement that creates a table, as SQLite keeps it."""
    return "CREATE TABLE" + statement.removeprefix("create table").removeprefix(" if not exists")


_TABLES = {_as_kept(one) for one in SCHEMA if one.startswith("create table")}
_ALLOWED = _TABLES | {_as_kept(PARTS)}


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is no store, or one of another version.

    Raises:
        CompressionError: it says which.
        sqlite3.Error: the file is damaged.
    """
    (application,) = connection.execute("pragma application_id").fetchone()
    (version,) = connection.execute("pragma user_version").fetchone()
    if application != APPLICATION:
        raise CompressionError(f"{path}: an SQLite file, but no study's; choose another path.")
    if version != VERSION:
        raise CompressionError(
            f"{path}: a store of version {version}, and this tdcompress has version {VERSION}; go on with the "
            "tdcompress that made it, or choose another path."
        )
    tables = {sql for (sql,) in connection.execute("select sql from sqlite_master where sql is not null")}
    if not _TABLES <= tables <= _ALLOWED:  # a trigger or a view would run with our statements
        raise CompressionError(f"{path}: not the tables of a study's store; choose another path.")


def measured_from(text: Any) -> dict[str, Any]:
    """What was measured, back from the file.

    Raises:
        sqlite3.DataError: it is not that; the caller says of which file.
    """
    try:
        measured = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        measured = None
    plain = (int, float, str, type(None))
    if not isinstance(measured, dict) or not all(isinstance(value, plain) for value in measured.values()):
        raise sqlite3.DataError("what was measured is damaged")
    if not isinstance(measured.get("seconds", 0.0), (int, float)):  # they are added up
        raise sqlite3.DataError("the seconds that were measured are damaged")
    return measured


def dumped(measured: Mapping[str, Any]) -> str:
    """What was measured, as the file has it."""
    return json.dumps(dict(measured), allow_nan=False)
