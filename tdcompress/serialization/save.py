"""save(): a model into one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.serialization.document import METADATA_KEY, document_of
from tdcompress.surgery.left import left_dense
from tdcompress.surgery.plain import check_wrapper


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model with factorized layers to one safetensors file.

    The file has what `model.state_dict()` has, each tensor once where several names share it, and in its metadata what
    was swapped and how. Training mode, hooks and non-persistent buffers are left to the code that builds the model.
    The file is written beside `path` and moved there when it is whole.

    Args:
        model: any model; one without factorized layers is saved as it is.
        path: where to; a file that is there is replaced.

    Raises:
        CompressionError: the state has something that is no plain tensor, which only pickle could store.

    >>> import tempfile, tdcompress as td
    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    >>> small = td.decompose(model, "2", method="tucker", ratio=0.9)
    >>> fresh = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(small, folder + "/small.safetensors")
    ...     back = td.load(folder + "/small.safetensors", into=fresh)
    >>> image = torch.randn(1, 3, 8, 8)
    >>> torch.equal(back(image), small(image))
    True
    """
    check_wrapper(model, "")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FactorizedConv)}
    tensors, aliases = _unique(model.state_dict())
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={METADATA_KEY: document_of(layers, aliases, left_dense(model))})
        os.replace(partial, target)
    except (SafetensorError, KeyError) as error:
        raise CompressionError(f"the model cannot be stored as safetensors: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _unique(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a state once, in memory of its own, and the names that mean one of another name."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        _check_plain(name, value)
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        first = seen.setdefault(place, name) if value.numel() else name
        if first == name:
            tensors[name] = value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        else:
            aliases[name] = first
    return tensors, aliases


def _check_plain(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise CompressionError(
            f"{name!r} in the model's state is a {type(value).__name__}, which only pickle can store."
        )
    kind = type(value.data)
    if kind is not Tensor or value.layout is not torch.strided or value.is_quantized or value.is_meta:
        what = "on the meta device" if value.is_meta else f"a {kind.__name__} of {value.dtype}, {value.layout}"
        raise CompressionError(f"{name!r} is {what}; only plain tensors with values can be stored.")
