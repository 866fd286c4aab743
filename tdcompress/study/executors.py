"""A pool of processes for trials."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch


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
