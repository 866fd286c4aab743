"""What travels to another process by value, whatever memory it shares here."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch

from tdcompress.errors import CompressionError


class Parcel:
    """Something that travels by value: PyTorch would let processes share its memory, and with it the model's.

    Args:
        content: anything that pickle takes. It raises a `CompressionError`, as it is sent, where that is not so.

    >>> pickle.loads(pickle.dumps(Parcel(torch.arange(9)[:2]))).content
    tensor([0, 1])
    """

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Callable[[bytes], Parcel], tuple[bytes]]:
        file = io.BytesIO()
        try:
            _Packer(file).dump(self.content)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise CompressionError(
                f"it cannot be sent to another process ({error}); functions and classes must stand at the top level of "
                "a module. In this process, executor=None, anything goes."
            ) from None
        return _unpacked, (file.getvalue(),)


class _Packer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """A view goes without the rest of the memory that it looks at."""
        if type(value) is torch.Tensor and value.untyped_storage().nbytes() > value.nbytes:
            return value.clone().__reduce_ex__(pickle.DEFAULT_PROTOCOL)  # type: ignore[no-untyped-call]
        return NotImplemented


def _unpacked(packed: bytes) -> Parcel:
    return Parcel(pickle.loads(packed))
