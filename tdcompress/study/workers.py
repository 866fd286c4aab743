"""What measures the trials of a study: this process, or the workers of an executor, which may die meanwhile."""

from __future__ import annotations

import hashlib
import pickle
import traceback
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tdcompress.errors import CompressionError
from tdcompress.study.grid import Trial
from tdcompress.study.measure import Compressed, Job, Measurer, Outcome
from tdcompress.work import check_executor

_UNKNOWN_WIDTH = 256  # trials under way on an executor that does not say how many workers it has


class Workers:
    """Those who carry out a job; a pool of processes is made anew when one of them dies.

    The job is written beside the store once, and every worker reads it from there. One that cannot, on another
    machine without a common file system, says so and is sent it with its next trial.

    Args:
        job: what the trials need.
        executor: where they run; None for this process.
        store: path of the store.
        under_way: how many trials the executor shall have at a time.

    Raises:
        CompressionError: the job cannot be sent, a worker cannot start or cannot read it, or the pool is forked.
    """

    def __init__(self, job: Job, executor: Executor | None, store: Path, under_way: int | None = None) -> None:
        self._given, self._current = executor, executor
        self._measurer: Measurer | None = None
        self._file = store.absolute().with_name(f"{store.name}-job")
        self._file.unlink(missing_ok=True)  # of a driver that was killed
        self._attempts = 0
        if executor is None:
            self._measurer = Measurer(job)
            self.width = 1
            return
        if under_way is not None and under_way < 1:
            raise CompressionError(f"under_way must be at least 1, found {under_way}.")
        check_executor(executor)
        workers = getattr(executor, "_max_workers", None)
        self.width = under_way or (workers + 1 if workers else _UNKNOWN_WIDTH)
        self._packed = job.packed()
        self._name = hashlib.sha256(self._packed).hexdigest()
        self._file.write_bytes(self._packed)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._current is not self._given and self._current is not None:
            self._current.shutdown(cancel_futures=True)
        self._file.unlink(missing_ok=True)

    def baseline(self) -> dict[str, float]:
        """What the model itself reaches, measured where the trials will be; tried again if a worker dies of it.

        Raises:
            CompressionError: workers do not start, or `evaluate` is not what it must be.
        """
        if self._measurer is not None:
            return self._measurer.baseline()
        try:
            return self._measured_baseline()
        except BrokenExecutor:
            self.rebuild()
        try:
            return self._measured_baseline()
        except BrokenExecutor as error:
            raise CompressionError(
                f"the executor's workers die before the first trial ({error}); does the script keep what it runs under "
                'if __name__ == "__main__", and does evaluate work alone?'
            ) from error

    def _measured_baseline(self) -> Any:
        assert self._current is not None
        answer = self._answered(self._current.submit(_baseline, self._reference()))
        return answer or self._answered(self._current.submit(_baseline, self._reference(with_job=True)))

    def submit(self, trial: Trial, shared: Compressed | None, share: bool, with_job: bool = False) -> Future[Any]:
        """Begin a trial; the future's result is an `Outcome`, or None if the worker lacks the job.

        Args:
            trial: what to measure.
            shared: what another trial of the same decomposition has measured already.
            share: whether others wait for this one's.
            with_job: send the job along.

        Raises:
            BrokenExecutor: a worker has died.
        """
        if self._measurer is not None:
            done: Future[Outcome] = Future()
            done.set_result(self._measurer.measure(trial, shared, share))
            return done
        assert self._current is not None
        return self._current.submit(_measure, self._reference(with_job), trial, shared, share)

    def rebuild(self) -> None:
        """New workers in place of a broken pool.

        Raises:
            CompressionError: the executor is of a kind that only its owner can rebuild.
        """
        broken = self._current
        if not isinstance(broken, ProcessPoolExecutor):
            raise CompressionError(
                f"the {type(broken).__name__} broke down. What had ended is in the store: make a new one and run the "
                "study again."
            )
        broken.shutdown(cancel_futures=True)
        names = ("_max_workers", "_mp_context", "_initializer", "_initargs")
        workers, context, initializer, arguments = (getattr(broken, name) for name in names)
        self._current = ProcessPoolExecutor(workers, context, initializer, arguments)

    def stop(self) -> None:
        """End what is running, without waiting for it; for when the driver is told to stop."""
        if self._current is None:
            return
        self._current.shutdown(wait=False, cancel_futures=True)
        # Without this, leaving Python would wait for the trials that are running.
        for process in list((getattr(self._current, "_processes", None) or {}).values()):
            process.terminate()

    def _reference(self, with_job: bool = False) -> _JobReference:
        self._attempts += 1
        return _JobReference(self._name, str(self._file), self._packed if with_job else None, self._attempts)

    @staticmethod
    def _answered(future: Future[Any]) -> Any:
        answer = future.result()
        if isinstance(answer, CompressionError):
            raise answer
        return answer


@dataclass(frozen=True)
class _JobReference:
    """How a worker gets at the job: it knows it by name, reads the file, or unpacks what was sent."""

    name: str
    file: str
    packed: bytes | None
    attempt: int  # tells two attempts at one trial apart, where an executor remembers results by arguments


_measurers: dict[str, Measurer] = {}  # of this worker: one, the last study's


def _measurer(reference: _JobReference) -> Measurer | None:
    if reference.name not in _measurers:
        packed = reference.packed
        if packed is None:
            file = Path(reference.file)
            packed = file.read_bytes() if file.exists() else None
        if packed is None or hashlib.sha256(packed).hexdigest() != reference.name:
            return None
        try:
            job = pickle.loads(packed)
        except Exception:
            raise CompressionError(
                "a worker cannot read the study; functions and classes that it uses must be importable there:\n"
                + traceback.format_exc()
            ) from None
        _measurers.clear()
        _measurers[reference.name] = Measurer(job)
    return _measurers[reference.name]


def _baseline(reference: _JobReference) -> dict[str, float] | CompressionError | None:
    try:
        measurer = _measurer(reference)
        return None if measurer is None else measurer.baseline()
    except CompressionError as error:  # returned, because not every executor keeps an exception's type
        return error


def _measure(reference: _JobReference, trial: Trial, shared: Compressed | None, share: bool) -> Outcome | None:
    measurer = _measurer(reference)
    return None if measurer is None else measurer.measure(trial, shared, share)
