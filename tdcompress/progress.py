"""How far long work is: a bar in a terminal, calls of the user's, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from tdcompress.errors import CompressionError

Progress = bool | Callable[[int, int, str], object] | None

_AT_LEAST = 0.5  # seconds that work takes before a bar shows that nobody asked for
_shown: ContextVar[bool] = ContextVar("_shown", default=False)  # whether there is a bar already


@contextmanager
def following(progress: Progress, total: int, title: str) -> Iterator[Callable[[str], None]]:
    """Say how far work is that has `total` pieces.

    Work inside work is followed by its own callback only: there is never more than one bar.

    Args:
        progress: None for a bar where tqdm is installed and standard error is a terminal, True for a bar in any case,
            False for nothing, or a function that is called as `progress(done, total, what)`.
        total: how many pieces there are.
        title: what the work is called.

    Yields:
        What to call with the name of every piece when it is done; `what` is the title and that name.

    Raises:
        CompressionError: `progress` is none of these, or tqdm is missing where a bar was asked for.

    >>> with following(lambda done, total, what: print(f"{done} of {total}, {what}"), 2, "decompose") as step:
    ...     step("conv1")
    ...     step("")
    1 of 2, decompose: conv1
    2 of 2, decompose
    """
    if not callable(progress) and not isinstance(progress, bool | None):
        raise CompressionError(
            f"progress must be None, True, False, or a function of done, total and what; got {progress!r}."
        )
    done = 0
    with _bar(progress, total, title) if _wanted(progress) else nullcontext() as bar:
        inside = _shown.set(_shown.get() or bar is not None)

        def step(piece: str) -> None:
            nonlocal done
            done += 1
            if callable(progress):
                progress(done, total, f"{title}: {piece}" if piece else title)
            elif bar is not None:
                bar.set_postfix_str(piece, refresh=False)
                bar.update()

        try:
            yield step
        finally:
            _shown.reset(inside)


def _wanted(progress: Progress) -> bool:
    if callable(progress) or progress is False or _shown.get():
        return False
    return progress is True or (sys.stderr is not None and sys.stderr.isatty())


def _bar(progress: Progress, total: int, title: str) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        if progress is None:
            return nullcontext()
        raise CompressionError(
            "progress=True needs tqdm: pip install 'tdcompress[study]', or pass a function of done, total and what."
        ) from None
    asked = progress is True
    delay = 0 if asked else _AT_LEAST
    return tqdm(total=total, desc=title, unit="layer", dynamic_ncols=True, delay=delay, leave=asked)
