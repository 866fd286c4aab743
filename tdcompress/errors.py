"""The one exception that tdcompress raises for what it was given."""

from __future__ import annotations


class CompressionError(ValueError):
    """What was asked cannot be done; the message says where, what was found, and what to change.

    It is a `ValueError`, so code that guards against bad arguments in general catches it too.
    """

    def at(self, layer: str) -> CompressionError:
        """The same error with the name of the layer in front: `layer 'conv1': …`."""
        return CompressionError(f"layer {layer!r}: {self}")
