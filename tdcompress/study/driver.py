"""Brings trials to the workers and their results to the store."""

from __future__ import annotations

import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tdcompress.errors import CompressionError
from tdcompress.study.grid import Trial, groups
from tdcompress.study.measure import Compressed, Outcome
from tdcompress.study.store import Store
from tdcompress.study.workers import Workers

_ALONE = 2  # how often a trial may lose its worker with no other trial under way, before it is to blame
_IN_A_ROW = 10  # deaths of workers without any result between them, before the study gives up


@dataclass
class _Task:
    """A trial on its way.

    Attributes:
        trial: what is measured.
        others: trials that wait for its decomposition.
        shared: the decomposition, if another trial has made it.
        deaths: how often its worker died while it was the only one.
        suspect: whether a worker died while it was under way.
    """

    trial: Trial
    others: list[Trial]
    shared: Compressed | None = None
    deaths: int = 0
    suspect: bool = False


def drive(every: Sequence[Trial], store: Store, workers: Workers, progress: bool, retry_failed: bool) -> None:
    """Measure what the store lacks.

    Args:
        every: the grid.
        store: open for writing.
        workers: where trials run.
        progress: show a bar on standard error.
        retry_failed: measure the failed ones again.

    Raises:
        KeyboardInterrupt: with a message that says how to go on.
        CompressionError: the store cannot be written, or the executor is gone.
    """
    settled = store.settled(retry_failed)
    missing = [trial for trial in every if trial.key not in settled]
    _warn_of_older(store, [trial.key for trial in every if trial.key in settled])
    with _bar(len({trial.key for trial in every}), len({trial.key for trial in missing}), progress) as bar:
        try:
            _Driver(store, workers, bar).run(missing)
        except KeyboardInterrupt:
            workers.stop()
            there = len(store.settled())
            raise KeyboardInterrupt(
                f"stopped; {there} results are in {store.path}, and the same call goes on from there"
            ) from None
        except BaseException:
            workers.stop()
            raise


class _Driver:
    def __init__(self, store: Store, workers: Workers, bar: Any) -> None:
        self._store, self._workers, self._bar = store, workers, bar
        self._ready: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()
        self._flying: dict[Future[Any], _Task] = {}
        self._deaths = 0  # of workers since the last result

    def run(self, missing: Sequence[Trial]) -> None:
        """Until every trial has a result. The first of those that share a decomposition goes ahead of the others."""
        self._ready.extend(_Task(first, others) for first, *others in groups(missing))
        while self._ready or self._suspects or self._flying:
            self._begin()
            self._end(wait(self._flying, return_when=FIRST_COMPLETED).done)

    def _begin(self) -> None:
        """As many as there is room for; a suspect gets the workers to itself."""
        while len(self._flying) < self._workers.width:
            if any(task.suspect for task in self._flying.values()) or (self._suspects and self._flying):
                return
            if not (self._suspects or self._ready):
                return
            self._submit((self._suspects or self._ready).popleft())

    def _submit(self, task: _Task, with_job: bool = False) -> None:
        self._bar.set_description_str(str(task.trial), refresh=False)
        try:
            future = self._workers.submit(task.trial, task.shared, bool(task.others), with_job)
        except BrokenExecutor as error:  # a worker died since, and this trial has not begun
            (self._suspects if task.suspect else self._ready).appendleft(task)
            self._after_a_death(error, [])
        else:
            self._flying[future] = task

    def _end(self, done: Iterable[Future[Any]]) -> None:
        broken: list[_Task] = []
        for future in done:
            task = self._flying.pop(future)
            try:
                outcome = future.result()
            except BrokenExecutor as error:
                broken.append(task)
                problem = error
                continue
            except Exception:  # the executor's own, such as a cluster that gave a trial up
                outcome = Outcome(None, traceback.format_exc())
            if outcome is None:
                self._submit(task, with_job=True)
            else:
                self._keep(task, outcome)
        if broken:
            self._after_a_death(problem, broken)

    def _keep(self, task: _Task, outcome: Outcome) -> None:
        self._store.save(task.trial.key, outcome.row, outcome.traceback)
        self._deaths = 0
        self._bar.update()
        if outcome.compressed is not None:
            self._ready.extendleft(_Task(trial, [], outcome.compressed) for trial in reversed(task.others))
        elif task.others:  # it failed, and the next one tries
            first, *others = task.others
            self._ready.appendleft(_Task(first, others))

    def _after_a_death(self, error: BrokenExecutor, broken: list[_Task]) -> None:
        """Nobody knows whose worker it was: each of those under way is tried again alone."""
        self._deaths += 1
        if self._deaths > _IN_A_ROW:
            raise CompressionError(
                f"{self._deaths} workers died one after the other, without a result ({error}). What had ended is in "
                f"{self._store.path}; run the study again when the machine is well."
            ) from error
        ended = [future for future in self._flying if future.done() and future.exception() is None]
        under_way = [*broken, *(task for future, task in self._flying.items() if future not in ended)]
        self._flying = {future: self._flying[future] for future in ended}
        for task in under_way:
            task.deaths += len(under_way) == 1
            task.suspect = True
            if task.deaths == _ALONE:
                self._keep(task, Outcome(None, "The worker died, twice with this trial alone: out of memory?\n"))
            else:
                self._suspects.append(task)
        self._workers.rebuild()


def _warn_of_older(store: Store, keys: Sequence[str]) -> None:
    older = store.other_versions(keys)
    if older:
        warnings.warn(
            f"{store.path} has trials that were measured by tdcompress {', '.join(older)}, whose solvers may differ; "
            "choose another path to measure them anew.",
            stacklevel=4,
        )


@contextmanager
def _bar(total: int, missing: int, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=total, initial=total - missing, unit="trial", disable=not progress) as bar:
        yield bar
