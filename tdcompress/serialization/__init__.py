"""A compressed model on disk and back."""

from tdcompress.serialization.model import load, save

__all__ = ["load", "save"]
