"""The work of many layers: side by side on threads of this process, or on an executor."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import torch

from tdcompress.errors import CompressionError, naming
from tdcompress.parcels import Parcel
from tdcompress.threads import is_small, threads_for

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_TINY = 1 << 15  # elements, below which a layer is more Python than arithmetic, and two threads of Python take turns


def solved(
    function: Callable[[_Task], _Result],
    tasks: Mapping[str, _Task],
    *,
    step: Callable[[str], object] = lambda layer: None,
    executor: Executor | None = None,
    refused: dict[str, CompressionError] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, _Result]:
    """What `function` makes of every layer's task.

    Small layers gain little from a second thread, and much from a second layer: without an executor as many of them as
    PyTorch has threads are worked on at a time, each by one thread, so that the number does not change a bit. For tiny
    ones threads would wait for each other's Python: they are worked on one after the other, by one thread as well.

    On an executor the results have the same bits as in a process with as many threads as a worker has. Tensors
    are sent by value, without the rest of the memory that they are a view of. Whatever goes wrong, or Ctrl-C,
    cancels what has not begun.

    Args:
        function: for an executor it must stand at the top level of a module.
        tasks: what it is called with, by the layer's name.
        step: called with the name of every layer that is done, in the order of the tasks, the large ones last.
        executor: any `concurrent.futures.Executor`; None for this process.
        refused: where to note a `CompressionError` of the function, by the layer's name, instead of raising it.
        sizes: the elements of every layer, if `function` may run in several threads; None if it may not.

    Returns:
        The results by name, in the order of the tasks.

    Raises:
        CompressionError: the first in that order, with the layer's name; or the executor is forked or breaks down.

    >>> solved(len, {"conv1": "abc", "conv2": "de"})
    {'conv1': 3, 'conv2': 2}
    """
    outcomes: dict[str, _Result] = {}
    with closing(one_by_one(function, tasks, executor=executor, sizes=sizes)) as results:
        for name, outcome in results:
            if not isinstance(outcome, CompressionError):
                outcomes[name] = outcome
            elif refused is None:
                raise outcome.at(name)
            else:
                refused[name] = outcome
            step(name)
    return {name: outcomes[name] for name in tasks if name in outcomes}


def one_by_one(
    function: Callable[[_Task], _Result],
    tasks: Mapping[str, _Task],
    *,
    executor: Executor | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Generator[tuple[str, _Result | CompressionError], None, None]:
    """What `solved` collects, as it comes: name and result, or refusal, in the order of the tasks, the large ones last.

    Nothing is kept of a task that is done, nor of its result, so that layers need the memory of one of them where they
    are worked on one after the other. Close it where it may not be used up, see `contextlib.closing`: that cancels the
    rest.
    """
    left = dict(tasks)
    del tasks
    with _results(function, left, executor, sizes) as results:
        while results:
            name = next(iter(results))
            yield name, results.pop(name)()


def in_order(
    results: Iterator[tuple[str, _Result | CompressionError]], names: Iterable[str]
) -> Iterator[tuple[str, _Result]]:
    """What `one_by_one` gives, in another order, a large layer not before its turn.

    Raises:
        CompressionError: the first in that order, with the layer's name.
    """
    early: dict[str, _Result | CompressionError] = {}
    for name in names:
        while name not in early:
            early.update([next(results)])
        outcome = early.pop(name)
        if isinstance(outcome, CompressionError):
            raise outcome.at(name)
        yield name, outcome
        del outcome


def check_executor(executor: Executor) -> None:
    """Refuse what takes no work, and forked processes.

    Raises:
        CompressionError: it says how to make a pool.
    """
    if not callable(getattr(executor, "submit", None)):
        raise CompressionError(
            f"executor must be a concurrent.futures.Executor or None, got a {type(executor).__name__}; "
            "tdcompress.study.processes(workers) makes one."
        )
    context = getattr(executor, "_mp_context", None)
    if isinstance(executor, ProcessPoolExecutor) and context is not None and context.get_start_method() == "fork":
        raise CompressionError(
            "a forked PyTorch may hang and has no CUDA; make the pool with tdcompress.study.processes(workers), or "
            'with mp_context=multiprocessing.get_context("spawn").'
        )


@contextmanager
def _results(
    function: Callable[[_Task], _Result],
    tasks: dict[str, _Task],
    executor: Executor | None,
    sizes: Mapping[str, int] | None,
) -> Iterator[dict[str, Callable[[], Any]]]:
    """For every task a call that waits for its result; a `CompressionError` is a result, too. Tasks are used up."""
    if executor is None:
        if sizes is None:
            yield {name: partial(_next, name, function, tasks) for name in tasks}
        else:
            with _threads(function, tasks, sizes) as results:
                yield results
        return
    check_executor(executor)
    futures: dict[str, Future[Any]] = {}
    try:
        for name in list(tasks):
            futures[name] = _submitted(executor, function, tasks.pop(name))
        yield {name: partial(_waited, executor, name, futures) for name in futures}
    finally:
        for future in futures.values():
            future.cancel()


@contextmanager
def _threads(
    function: Callable[[_Task], _Result], tasks: dict[str, _Task], sizes: Mapping[str, int]
) -> Iterator[dict[str, Callable[[], Any]]]:
    """Results of small layers from threads, the largest first, tiny ones in turn; then of large ones from this one.

    If there are not two that are more than tiny, all are from this one.
    """
    count, turn = torch.get_num_threads(), Lock()

    def beside(name: str, task: _Task) -> _Result | CompressionError:
        with turn if sizes[name] < _TINY else nullcontext():
            return _attempted(function, task)

    def alone(name: str) -> _Result | CompressionError:
        torch.set_num_threads(count)  # BLAS has one number for all threads, which those of the pool have set
        with threads_for(sizes[name]):
            return _next(name, function, tasks)

    small = [name for name in sorted(sizes, key=sizes.__getitem__, reverse=True) if is_small(sizes[name])]
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        order = sorted(tasks, key=lambda name: not is_small(sizes[name]))
        waiting: dict[str, Future[Any]] = {}
        if count > 1 and sum(sizes[name] >= _TINY for name in small) > 1:
            waiting = {name: pool.submit(beside, name, tasks.pop(name)) for name in small}
        yield {name: waiting.pop(name).result if name in waiting else partial(alone, name) for name in order}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(count)


def _next(name: str, function: Callable[[_Task], _Result], tasks: dict[str, _Task]) -> _Result | CompressionError:
    with naming(name):  # for the warnings
        return _attempted(function, tasks.pop(name))


def _attempted(function: Callable[[_Task], _Result], task: _Task) -> _Result | CompressionError:
    try:
        return function(task)
    except CompressionError as error:  # returned, because not every executor keeps an exception's type
        return error


# --- on an executor -------------------------------------------------------------------------------------


def _submitted(executor: Executor, function: Callable[[_Task], _Result], task: _Task) -> Future[Any]:
    try:
        return executor.submit(_carried_out, Parcel((function, task)))
    except RuntimeError as error:  # a broken pool among them
        raise _broken(executor, error) from error


def _waited(executor: Executor, name: str, futures: dict[str, Future[Any]]) -> Any:
    try:
        outcome = futures[name].result()
        del futures[name]
    except CompressionError as error:  # of what could not be sent
        raise error.at(name) from None
    except (BrokenExecutor, CancelledError) as error:
        raise _broken(executor, error).at(name) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] == "distributed":  # Dask's word for a broken pool
            raise _broken(executor, error).at(name) from error
        raise
    return outcome.content if isinstance(outcome, Parcel) else outcome


def _broken(executor: Executor, error: BaseException) -> CompressionError:
    return CompressionError(
        f"the {type(executor).__name__} broke down ({str(error) or type(error).__name__}), and nothing was changed. "
        'A worker that dies may lack memory, or its script the guard if __name__ == "__main__". Make a new executor, '
        "with fewer workers, or leave executor=None."
    )


def _carried_out(parcel: Parcel) -> Any:
    function, task = parcel.content
    outcome = _attempted(function, task)
    return outcome if isinstance(outcome, CompressionError) else Parcel(outcome)
