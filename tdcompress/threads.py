"""How many threads work on a tensor: one, if it is small.

Threads of OpenMP spin while they wait for each other. Where another program wants the cores too, thousands of small
operations then take ten to sixty times as long; and even on idle cores the waiting costs small ones more than the
second thread is worth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")

_SMALL = 1 << 23  # elements, below which what is done between two waits takes milliseconds at the most


def is_small(elements: int) -> bool:
    """Whether one thread works on a tensor of so many elements."""
    return elements < _SMALL


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Let torch work on so many threads, or on as many as it does if none is given; its number is put back at the end.

    >>> before = torch.get_num_threads()
    >>> with on_threads(1):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    before = torch.get_num_threads()
    _become(count or before)
    try:
        yield
    finally:
        _become(before)


def _become(count: int) -> None:
    if torch.get_num_threads() != count:  # setting it sets that of BLAS, too, which all threads share
        torch.set_num_threads(count)


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """Work on a tensor of so many elements with as many of torch's threads as pay: the user's number, or one.

    The number is put back at the end, whatever happens. It is one of this thread; others keep theirs, but one that uses
    torch for the first time meanwhile begins with what it finds. Where one thread does it all, bits do not depend on
    the user's number.

    Args:
        elements: of the largest tensor or matrix that is worked on.

    >>> before = torch.get_num_threads()
    >>> with threads_for(1000):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    with on_threads(1 if is_small(elements) else None):
        yield


def threads_by_kernel(
    function: Callable[Concatenate[Tensor, _Arguments], _Found],
) -> Callable[Concatenate[Tensor, _Arguments], _Found]:
    """Let a function of kernels, (groups, *modes), run as `threads_for` says for one of them."""

    @functools.wraps(function)
    def run(kernels: Tensor, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Found:
        with threads_for(kernels[0].numel()):
            return function(kernels, *args, **kwargs)

    return run
