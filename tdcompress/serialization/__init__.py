"""A compressed model on disk and back."""

from tdcompress.serialization.load import load
from tdcompress.serialization.save import save

__all__ = ["load", "save"]
