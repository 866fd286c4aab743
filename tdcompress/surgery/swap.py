"""Put new layers where the old ones stand, in a copy or in place, with all that hung on them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.surgery.holders import biases, held
from tdcompress.surgery.plain import HOOK_TABLES, kept_hooks

Swap = tuple[str, nn.Module, nn.Module]  # the layer's name, the old layer, the new one


def swapped(
    model: nn.Module, swaps: Sequence[Swap], *, inplace: bool, copies: Mapping[int, Any] | None = None
) -> nn.Module:
    """The model with every old layer replaced wherever it stands, shared uses included.

    The new layers take over hooks and what other attributes a user hung on the old ones. What else holds an old layer's
    bias holds the new layer's, in place the very same parameter.

    Args:
        model: the model.
        swaps: names, old layers and new ones.
        inplace: change the model itself; else it is copied, and the copy shares no memory with it.
        copies: what else the copy has in place of what, by its id.

    Raises:
        CompressionError: the model cannot be copied, or holds a layer where a swap in place does not reach. Nothing is
            changed then.
    """
    if inplace:
        return _in_place(model, swaps)
    # A copy that is told the new layers are the copies of the old ones puts them wherever those stood,
    # and never copies a dense weight that would be thrown away.
    new_biases = {id(bias): new for _, old, layer in swaps for bias, new in _biases(old, layer)}
    memo: dict[int, Any] = {**(copies or {}), **{id(old): new for _, old, new in swaps}, **new_biases}
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
        for _, old, new in swaps:
            for table in HOOK_TABLES:
                _hang(new, table, copy.deepcopy(kept_hooks(old, table), memo), getattr(old, table))
            vars(new).update(copy.deepcopy(_attributes(old, new), memo))
    except (RuntimeError, TypeError) as error:
        raise CompressionError(
            f"the model cannot be copied ({error}); pass inplace=True to change it itself."
        ) from error
    return copied


def _in_place(model: nn.Module, swaps: Sequence[Swap]) -> nn.Module:
    replacements = {id(old): (name, new) for name, old, new in swaps}
    _check_reach(model, replacements)
    outside = _held_outside(model, [old for _, old, _ in swaps])
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children would skip a second use
            if id(child) in replacements:
                parent._modules[name] = replacements[id(child)][1]
    for _, old, new in swaps:
        for table in HOOK_TABLES:
            hooks, kept = getattr(old, table), kept_hooks(old, table)
            # The very same table, where nothing was taken out: a handle that removes from it goes on doing so.
            _hang(new, table, hooks if kept == hooks else kept, hooks)
        for wrapped in new._load_state_dict_pre_hooks.values():
            if getattr(wrapped, "with_module", False):
                bound: Any = wrapped
                bound.__setstate__({**bound.__getstate__(), "module": new})
        vars(new).update(_attributes(old, new))
        for bias, fresh in _biases(old, new):
            if id(bias) in outside:
                with torch.no_grad():
                    bias.copy_(fresh)
                for module, local in biases(new):
                    setattr(module, local, bias)
    return replacements[id(model)][1] if id(model) in replacements else model


def _biases(old: nn.Module, new: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """The bias of an old layer and that of the new one, if they have one."""
    for before, after in zip(held(biases(old)), held(biases(new)), strict=True):
        if before is not None and after is not None:
            yield before, after


def _held_outside(model: nn.Module, layers: Sequence[nn.Module]) -> set[int]:
    """The ids of the parameters that modules hold which are no part of these layers."""
    inside = {id(part) for layer in layers for part in layer.modules()}
    return {id(one) for module in model.modules() if id(module) not in inside for one in module._parameters.values()}


def _hang(new: nn.Module, table: str, hooks: Any, old: Any) -> None:
    """Give a new layer one table of hooks; what is no table, the kind of the backward hooks, as it was."""
    if not isinstance(old, Mapping):
        object.__setattr__(new, table, old)
    else:
        object.__setattr__(new, table, hooks if isinstance(hooks, OrderedDict) else OrderedDict(hooks))


def _attributes(old: nn.Module, new: nn.Module) -> dict[str, Any]:
    """What a user hung on the old layer beside what every layer of its kind has."""
    if isinstance(old, FactorizedConv):
        usual = vars(type(old)(old.spec, old.ranks, old.axes, device="meta"))
    else:
        usual = vars(ConvSpec.read(old).build(device="meta"))
    return {name: value for name, value in vars(old).items() if name not in usual and not hasattr(new, name)}


def _check_reach(model: nn.Module, replacements: Mapping[int, tuple[str, nn.Module]]) -> None:
    for place, found in _held_elsewhere(model):
        if id(found) in replacements:
            error = CompressionError(
                f"the model holds it in the attribute {place!r} too, which a swap in place would leave as it is; "
                "leave inplace=False."
            )
            raise error.at(replacements[id(found)][0])


def _held_elsewhere(model: nn.Module) -> Iterator[tuple[str, object]]:
    """What modules hold in plain attributes, and in lists, tuples and dicts there, by the attribute's name."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in ("_modules", "_parameters", "_buffers"):
                place = f"{name}.{attribute}" if name else attribute
                if isinstance(value, dict | list | tuple):
                    yield from ((place, item) for item in (value.values() if isinstance(value, dict) else value))
                else:
                    yield place, value
