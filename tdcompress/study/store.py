"""The results on disk: one SQLite file, written by the driver alone."""

from __future__ import annotations

import json
import platform
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import tdcompress
from tdcompress.deferred import DataFrame
from tdcompress.errors import CompressionError
from tdcompress.study.database import PARTS, SCHEMA, check, dumped, measured_from
from tdcompress.study.grid import Trial
from tdcompress.study.locking import advice, driver_lock
from tdcompress.study.rows import GRID, coordinates, joined

_SYNC_SECONDS = 5  # waiting for the disk at every commit would cost 10 000 quick trials a minute
_DAMAGED = "its tables are damaged"


class Store:
    """A study's file, open.

    It is in WAL mode, so others may read it while the driver writes. A result is committed when `save` returns, and
    survives whatever ends the process; a power cut may cost the last five seconds. A driver holds a lock on a
    file beside it, `<name>-driver`, until it ends, however it ends; it is an SQLite lock, so keep the store on a
    local disk.

    Args:
        path: the file; made if it is missing, unless `read_only`.
        read_only: look only; takes no lock.
        patience: seconds to wait for a program that has locked the file itself.

    Raises:
        CompressionError: another driver has the file, or it cannot be read or written, or is no such store.
    """

    def __init__(self, path: str | PathLike[str], read_only: bool = False, patience: float = 30) -> None:
        self.path = Path(path)
        self._lock: sqlite3.Connection | None = None
        self._synced = time.monotonic()
        if read_only and not self.path.exists():
            raise CompressionError(f"{self.path}: there is no such store; run the study first.")
        with self._explained():
            if not read_only:
                self._lock = driver_lock(self.path)
            try:
                self._connection = self._opened(read_only, patience)
            except BaseException:
                self._release()
                raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self._connection.close()
        self._release()

    def plan(self, trials: Iterable[Trial]) -> None:
        """Note what was asked."""
        trials = list(trials)
        rows = [(*coordinates(trial), trial.key) for trial in trials]
        parts = [(trial.key, trial.whole, trial.strategy) for trial in trials if trial.strategy is not None]
        with self._explained(), self._transaction():
            self._connection.executemany("insert or ignore into trials values (?, ?, ?, ?, ?)", rows)
            self._connection.executemany("insert or ignore into parts values (?, ?, ?)", parts)

    def settled(self, retry_failed: bool = False) -> set[str]:
        """The keys that need no measuring: those of results and, unless they are to be retried, of failures."""
        measured, every = "select key from results where measured is not null", "select key from results"
        with self._explained():
            return {key for (key,) in self._connection.execute(measured if retry_failed else every)}

    def save(self, key: str, measured: Mapping[str, Any] | None, traceback: str | None) -> None:
        """Keep what was measured for a key, or why it could not be."""
        row = (key, None if measured is None else dumped(measured), traceback, _environment())
        with self._explained(), self._transaction():
            self._connection.execute(
                "insert or replace into results (key, measured, traceback, environment) values (?, ?, ?, ?)", row
            )
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            with self._explained():
                self._connection.execute("pragma wal_checkpoint(passive)").fetchall()
            self._synced = time.monotonic()

    def keep_baseline(self, key: str, measure: Callable[[], Mapping[str, float]]) -> None:
        """Keep what the model itself reaches; it is measured if it is not there yet."""
        if not self.baseline(key):
            row = (key, dumped(measure()))
            with self._explained(), self._transaction():
                self._connection.execute("insert or replace into baselines values (?, ?)", row)

    def baseline(self, key: str) -> dict[str, float]:
        """What was kept; empty if nothing was."""
        with self._explained():
            row = self._connection.execute("select measured from baselines where key = ?", (key,)).fetchone()
            return {} if row is None else measured_from(row[0])

    def other_versions(self, keys: Iterable[str]) -> list[str]:
        """The other versions of tdcompress by which some of these were measured."""
        wanted = set(keys)
        with self._explained():
            measured = self._connection.execute("select key, json_extract(environment, '$.tdcompress') from results")
            versions = {version for key, version in measured if key in wanted and isinstance(version, str)}
        return sorted(versions - {tdcompress.__version__})

    def failed(self, trials: Sequence[Trial]) -> list[tuple[str, str]]:
        """Trial and traceback of each that failed, in the order of the trials."""
        why = self._tracebacks()
        return [(str(trial), why[trial.key]) for trial in trials if trial.key in why]

    def failures(self, trials: Sequence[Trial]) -> DataFrame:
        """The failed ones among the trials, with their strategies, if those have names, and their tracebacks."""
        import pandas as pd

        why = self._tracebacks()
        rows = [[*coordinates(trial), trial.strategy, why[trial.key]] for trial in trials if trial.key in why]
        frame = pd.DataFrame(rows, columns=[*GRID, "strategy", "traceback"])
        named = any(trial.strategy is not None for trial in trials)
        return frame if named else frame.drop(columns="strategy")

    def frame(self, trials: Sequence[Trial] | None = None) -> DataFrame:
        """One row a trial that was measured: of these, in their order; by default of all that was ever asked.

        Trials that differ in the strategy alone are one row.
        """
        import pandas as pd

        with self._explained():
            asked: list[tuple[Any, ...]] = (
                self._connection.execute("select layer, method, ratio, run, key from trials order by rowid").fetchall()
                if trials is None
                else [(*coordinates(trial), trial.key) for trial in trials]
            )
            known = dict(self._connection.execute("select key, measured from results where measured is not null"))
            found = [(key, at, measured_from(known[key])) for *at, key in asked if key in known]
            rows = joined(found, self._parts())
        return pd.DataFrame(rows, columns=None if rows else list(GRID))

    def _tracebacks(self) -> dict[str, str]:
        """Why each of the failed ones failed, by key."""
        with self._explained():
            why = dict(self._connection.execute("select key, traceback from results where measured is null"))
            if not all(isinstance(text, str) and text.strip() for text in why.values()):
                raise sqlite3.DataError("a failure has no traceback")
        return why

    def _parts(self) -> dict[str, tuple[str, str]]:
        """Whole and strategy of the keys of results that share a row with others."""
        there = self._connection.execute("select 1 from sqlite_master where name = 'parts'").fetchone()
        rows = self._connection.execute("select key, whole, strategy from parts") if there else ()
        return {key: (whole, strategy) for key, whole, strategy in rows}

    def _opened(self, read_only: bool, patience: float) -> sqlite3.Connection:
        target = f"{self.path.absolute().as_uri()}?mode={'rw' if read_only else 'rwc'}"
        connection = sqlite3.connect(target, timeout=patience, isolation_level=None, uri=True)
        try:
            # The file may come from anybody: what is damaged shall be noticed, and what it defines call no function.
            connection.execute("pragma cell_size_check = on")
            connection.execute("pragma trusted_schema = off")
            if read_only:  # not mode=ro, which would leave the files of the WAL behind
                connection.execute("pragma query_only = on")
            fresh = not connection.execute("select count(*) from sqlite_master").fetchone()[0]
            if not fresh:
                check(connection, self.path)
            elif read_only:
                raise CompressionError(f"{self.path}: nothing was ever stored there; run the study first.")
            if not read_only:
                connection.execute("pragma journal_mode = wal")
                connection.execute("pragma synchronous = normal")
            if fresh:
                connection.execute("begin immediate")
                for statement in SCHEMA:
                    connection.execute(statement)
                connection.execute("commit")
            if not read_only:
                connection.execute(PARTS)
        except BaseException:
            connection.close()
            raise
        return connection

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.execute("commit")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors with the file's name and what to do."""
        try:
            yield
        except UnicodeDecodeError:  # SQLite's message quotes what is damaged
            raise CompressionError(f"{self.path}: {_DAMAGED}; {advice('')}") from None
        except sqlite3.Error as error:  # without that message in Python 3.10
            raise CompressionError(f"{self.path}: {str(error) or _DAMAGED}; {advice(str(error))}") from error


def _environment() -> str:
    versions = {"tdcompress": tdcompress.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return json.dumps({**versions, "machine": platform.machine()})
