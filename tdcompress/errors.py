"""The one exception that tdcompress raises for what it was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
