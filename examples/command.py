"""What commands of the examples share: how many threads they take, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tdcompress.errors import CompressionError


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch work on so many threads, or on as many as it does if none is given; its number is put back at the end.

    >>> before = torch.get_num_threads()
    >>> with threads(1):
    ...     torch.get_num_threads()
    1
    >>> torch.get_num_threads() == before
    True
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_command(main: Callable[[], None]) -> None:
    """Run a command; of a `CompressionError`, which says what to change, the message alone is shown."""
    try:
        main()
    except CompressionError as error:
        sys.exit(f"error: {error}")
