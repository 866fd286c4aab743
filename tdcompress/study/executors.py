"""Where trials run: in this process, in a pool of processes, or on whatever has `submit`."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tdcompress.errors import CompressionError
from tdcompress.study.grid import Trial
from tdcompress.study.measure import Bench, Compressed, Job, Outcome
from tdcompress.work import check_executor

_UNKNOWN_WIDTH = 256  # trials under way on an executor that does not say how many workers it has


def processes(workers: int | None = None, threads: int = 1) -> ProcessPoolExecutor:
    """A pool of processes for `Study.run` on this machine; they share its GPU, if there is one.

    The workers are spawned, because a forked PyTorch may hang and has no CUDA. They leave Ctrl-C to the driver,
    and end when it is gone, even if it was killed.

    A script that uses it needs the guard `if __name__ == "__main__":`, as with every spawned process.

    Args:
        workers: how many; by default as many as this process may use CPUs.
        threads: of PyTorch in each of them. More than one pays only where there are CPUs to spare.

    Example:
        >>> with processes(2) as executor:
        ...     executor.submit(abs, -3).result()
        3
    """
    workers = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(threads,))


class Workplace:
    """A job and what carries it out, which outlives the death of workers.

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
        self._bench: Bench | None = None
        self._file = store.absolute().with_name(f"{store.name}-job")
        self._file.unlink(missing_ok=True)  # of a driver that was killed
        self._attempts = 0
        if executor is None:
            self._bench = Bench(job)
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

    def __enter__(self) -> Workplace:
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
        if self._bench is not None:
            return self._bench.baseline()
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
        answer = self._answered(self._current.submit(_baseline, self._ticket()))
        return answer or self._answered(self._current.submit(_baseline, self._ticket(heavy=True)))

    def submit(self, trial: Trial, shared: Compressed | None, share: bool, heavy: bool = False) -> Future[Any]:
        """Begin a trial; the future's result is an `Outcome`, or None if the worker lacks the job.

        Args:
            trial: what to measure.
            shared: what another trial of the same decomposition has found already.
            share: whether others wait for this one's.
            heavy: send the job along.

        Raises:
            BrokenExecutor: a worker has died.
        """
        if self._bench is not None:
            done: Future[Outcome] = Future()
            done.set_result(self._bench.measure(trial, shared, share))
            return done
        assert self._current is not None
        return self._current.submit(_measure, self._ticket(heavy), trial, shared, share)

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

    def _ticket(self, heavy: bool = False) -> _Ticket:
        self._attempts += 1
        return _Ticket(self._name, str(self._file), self._packed if heavy else None, self._attempts)

    @staticmethod
    def _answered(future: Future[Any]) -> Any:
        answer = future.result()
        if isinstance(answer, CompressionError):
            raise answer
        return answer


@dataclass(frozen=True)
class _Ticket:
    """How a worker gets at the job: it knows it by name, reads the file, or unpacks what was sent."""

    name: str
    file: str
    packed: bytes | None
    attempt: int  # tells two attempts at one trial apart, where an executor remembers results by arguments


_benches: dict[str, Bench] = {}  # of this worker: one, the last study's


def _bench(ticket: _Ticket) -> Bench | None:
    if ticket.name not in _benches:
        packed = ticket.packed
        if packed is None:
            file = Path(ticket.file)
            packed = file.read_bytes() if file.exists() else None
        if packed is None or hashlib.sha256(packed).hexdigest() != ticket.name:
            return None
        try:
            job = pickle.loads(packed)
        except Exception:
            raise CompressionError(
                "a worker cannot read the study; functions and classes that it uses must be importable there:\n"
                + traceback.format_exc()
            ) from None
        _benches.clear()
        _benches[ticket.name] = Bench(job)
    return _benches[ticket.name]


def _baseline(ticket: _Ticket) -> dict[str, float] | CompressionError | None:
    try:
        bench = _bench(ticket)
        return None if bench is None else bench.baseline()
    except CompressionError as error:  # returned, because not every executor keeps an exception's type
        return error


def _measure(ticket: _Ticket, trial: Trial, shared: Compressed | None, share: bool) -> Outcome | None:
    bench = _bench(ticket)
    return None if bench is None else bench.measure(trial, shared, share)


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()


def _end_with(wait: Callable[[], None]) -> None:
    """A worker whose driver was killed would wait for its next trial for ever, and keep its GPU memory."""
    wait()
    os._exit(1)
