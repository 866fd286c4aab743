"""The one exception that tdcompress raises for what it was given, and the layer's name on it and on warnings."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class CompressionError(ValueError):
    """What was asked cannot be done; the message says where, what was found, and what to change.

    It is a `ValueError`, so code that guards against bad arguments in general catches it too.
    """

    def at(self, layer: str) -> CompressionError:
        """The same error with the name of the layer in front: `layer 'conv1': …`."""
        return CompressionError(f"layer {layer!r}: {self}")


def unknown(kind: str, name: object, known: Iterable[str]) -> CompressionError:
    """The error for a name that is in no registry: it lists the known ones and suggests the closest.

    >>> print(unknown("method", "tuker", ["cp", "tucker"]))
    unknown method 'tuker'; known are cp, tucker. Did you mean 'tucker'?
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return CompressionError(f"unknown {kind} {name!r}; known are {', '.join(known)}.{hint}")


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Put the layer's name in front of every error and warning of the block.

    >>> with naming("conv1"):
    ...     raise CompressionError("its weight is empty.")
    Traceback (most recent call last):
        ...
    tdcompress.errors.CompressionError: layer 'conv1': its weight is empty.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except CompressionError as error:
            raise error.at(layer) from None
    for warning in caught:
        warn(f"layer {layer!r}: {warning.message}", warning.category)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called this package, however deep inside it the reason was found."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "tdcompress",
        "contextlib",
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
