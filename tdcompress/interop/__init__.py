"""Other libraries' layers to ours, and back."""

from tdcompress.interop.models import from_tltorch, to_tltorch

__all__ = ["from_tltorch", "to_tltorch"]
