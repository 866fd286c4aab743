"""Other libraries' layers and decompositions to ours, and back."""

from tdcompress.interop.models import from_tltorch, to_tltorch
from tdcompress.interop.tensors import from_factorized_tensor, to_factorized_tensor

__all__ = ["from_factorized_tensor", "from_tltorch", "to_factorized_tensor", "to_tltorch"]
