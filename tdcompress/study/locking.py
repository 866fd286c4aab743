"""One driver a store: its lock, and what to do about SQLite's errors."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tdcompress.errors import CompressionError


def driver_lock(path: Path) -> sqlite3.Connection:
    """The lock that only one driver can hold; the operating system frees it when the process is gone."""
    beside = path.with_name(f"{path.name}-driver")
    connection = sqlite3.connect(beside, timeout=0, isolation_level=None)
    try:
        connection.execute("begin exclusive")
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" not in str(error):
            raise
        raise CompressionError(
            f"{path}: another driver is running a study into it; wait for it, stop it, or choose another path."
        ) from None
    return connection


def advice(error: str) -> str:
    """What a user should do about an error of SQLite."""
    if "full" in error:
        return "make room and run the study again: it goes on with what is missing."
    if "locked" in error:
        return "another program has locked it; close that and run the study again, nothing is lost."
    if "readonly" in error or "unable to open" in error:
        return "see that its folder exists and that both can be written, or choose another path."
    return "choose another path, or put a copy of the file there."
