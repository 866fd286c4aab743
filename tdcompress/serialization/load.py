"""load(): a model from one safetensors file, of which nothing is ever executed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.layers.parameters import parameter
from tdcompress.serialization.document import METADATA_KEY, layer_of, parse
from tdcompress.surgery.left import keep_left
from tdcompress.surgery.plain import check_wrapper
from tdcompress.surgery.selection import ancestors
from tdcompress.surgery.swap import Swap, swap_in_place, swapped
from tdcompress.surgery.ties import retie


def load(path: str | os.PathLike[str], *, into: nn.Module, inplace: bool = False) -> nn.Module:
    """Read what `save` wrote onto a model of the same architecture, dense or factorized in the same way.

    Every name, shape and type is compared before anything is changed. Values are never converted: the file's types
    must be the model's. Each tensor goes to the device of the one whose place it takes; a model on the meta device
    is filled on the CPU. Of a layer that is replaced, hooks are carried over and parametrizations are not.

    Args:
        path: the file. Nothing in it is executed, whoever wrote it.
        into: a freshly built model; its weights do not matter. It is left alone unless `inplace`.
        inplace: change `into` itself (a model that is itself the layer is returned anew).

    Returns:
        The model with the layers and the values of the file; `save` has an example.

    Raises:
        CompressionError: the file is damaged, written by a newer version, or of another model; the first
            difference is named, and `into` is as it was.
    """
    check_wrapper(into, "")
    if inplace and any(tensor.is_meta for _, tensor in _tensors(into)):
        raise CompressionError("a model on the meta device has no memory to load into; leave inplace=False.")
    try:
        tensors, entries, left = _read(Path(path))
        swaps = _swaps(entries, into)
        retie(swaps)  # before the shapes are compared: a head that is tied to an embedding has them turned
        _compare(tensors, _expected(into, swaps))
    except CompressionError as error:
        raise CompressionError(f"{os.fspath(path)}: {error}") from None
    places = dict(into.named_modules(remove_duplicate=False))
    left = {name: reason for name, reason in left.items() if name in places}
    if not inplace:
        target = swapped(into, swaps, inplace=False, copies=_twins(into, swaps), left=left)
        target.load_state_dict(tensors)
        return target
    with ExitStack() as undo:
        target = swap_in_place(into, swaps, undo)
        keep_left(target, left, undo)
        for value in target.state_dict().values():
            undo.callback(value.copy_, value.clone())
        target.load_state_dict(tensors)
        undo.pop_all()  # all went well
    return target


def _read(path: Path) -> tuple[dict[str, Tensor], list[Any], dict[str, str]]:
    """The tensors by all their names, the entries of the factorized layers, and what was left dense."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise CompressionError("it was not written by td.save; load its tensors with safetensors itself.")
            entries, aliases, left = parse(metadata[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise CompressionError(f"it is truncated or no safetensors file ({error}).") from None
    for name, first in aliases.items():
        if first not in tensors or name in tensors:
            raise CompressionError(f"its description is damaged: {name[:100]!r} is said to be {first[:100]!r}.")
    return {**tensors, **{name: tensors[first] for name, first in aliases.items()}}, entries, left


def _compare(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Name the first difference between the tensors of the file and those of the model.

    Raises:
        CompressionError: there is one.
    """
    for name, tensor in expected.items():
        if name not in tensors:
            raise CompressionError(f"it is of another model: it lacks {name!r}.")
        if not isinstance(tensor, Tensor):
            raise CompressionError(f"{name!r} in the model's state is a {type(tensor).__name__}, which no file has.")
        for what, here, there in (
            ("shape", tuple(tensor.shape), tuple(tensors[name].shape)),
            ("type", tensor.dtype, tensors[name].dtype),
        ):
            if here != there:
                raise CompressionError(f"{name!r} has the {what} {there} in the file and {here} in the model.")
    for name in tensors:
        if name not in expected:
            raise CompressionError(f"it is of another model: it has {name[:100]!r}, which the model lacks.")


def _swaps(entries: Sequence[Any], into: nn.Module) -> list[Swap]:
    """The old layers with the ones of the file, which are empty and where the old ones are."""
    modules = dict(into.named_modules(remove_duplicate=False))
    swaps: dict[int, Swap] = {}
    for entry in entries:
        name, layer = layer_of(entry, modules)
        old = modules[name]
        check_wrapper(into, name)
        inside = [outer for outer in ancestors(name)[:-1] if isinstance(modules[outer], FactorizedConv)]
        if inside or id(old) in swaps:
            why = f"is a stage of {inside[0]!r} in the model" if inside else "comes twice"
            raise CompressionError(f"the factorized layer {why}.").at(name)
        swaps[id(old)] = name, old, _empty_like(layer, old)
    return list(swaps.values())


def _empty_like(layer: FactorizedConv, old: nn.Module) -> FactorizedConv:
    """`layer` with memory instead of meta tensors: device, type, memory format, requires_grad and mode of `old`."""
    like = max(old.parameters(), key=lambda parameter: parameter.numel())
    bias = next((p for name, p in old.named_parameters() if name.split(".")[-1] == "bias"), like)
    device = "cpu" if like.is_meta else like.device
    for stage in layer.weighted:
        stage.weight = parameter(torch.empty(stage.weight.shape, dtype=like.dtype, device=device), like=like)
    if layer.bias is not None:
        layer[-1].bias = parameter(torch.empty(layer.bias.shape, dtype=like.dtype, device=device), like=bias)
    return layer.train(old.training)


def _expected(into: nn.Module, swaps: Sequence[Swap]) -> dict[str, Tensor]:
    """The state of the model after the swap."""
    new = {id(old): layer for _, old, layer in swaps}
    replaced = {name: new[id(old)] for name, old in into.named_modules(remove_duplicate=False) if id(old) in new}
    state = {name: value for name, value in into.state_dict().items() if not replaced.keys() & set(ancestors(name))}
    for name, layer in replaced.items():
        state |= layer.state_dict(prefix=f"{name}." if name else "")
    return state


def _twins(into: nn.Module, swaps: Sequence[Swap]) -> dict[int, Any]:
    """Empty tensors for the copy to have in place of those whose values come from the file, on the CPU for meta.

    Raises:
        CompressionError: a tensor on the meta device would get no values.
    """
    twins: dict[int, Any] = {}
    stored = {id(tensor) for tensor in into.state_dict(keep_vars=True).values()}
    leaving = {id(parameter) for _, old, _ in swaps for parameter in old.parameters()}
    for name, tensor in _tensors(into):
        if id(tensor) in leaving:
            continue
        if tensor.is_meta and id(tensor) not in stored:
            raise CompressionError(
                f"{name!r} is on the meta device and not in the file; build the model on a device that has memory."
            )
        if id(tensor) in stored and type(tensor) in (Tensor, nn.Parameter):
            empty = torch.empty_like(tensor.detach(), device="cpu" if tensor.is_meta else tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            twins[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return twins


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
