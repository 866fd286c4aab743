"""Put new layers where the old ones stand, in a copy or in place, with all that hung on them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.kinds import kind_of
from tdcompress.surgery.holders import biases, held
from tdcompress.surgery.left import keep_left
from tdcompress.surgery.plain import HOOK_TABLES, kept_hooks

Swap = tuple[str, nn.Module, nn.Module]  # the layer's name, the old layer, the new one


def swapped(
    model: nn.Module,
    swaps: Sequence[Swap],
    *,
    inplace: bool,
    copies: Mapping[int, Any] | None = None,
    left: Mapping[str, str] | None = None,
) -> nn.Module:
    """The model with every old layer replaced wherever it stands, shared uses included.

    The new layers take over hooks and what other attributes a user hung on the old ones. What else holds an old layer's
    bias holds the new layer's.

    Args:
        model: the model.
        swaps: names, old layers and new ones.
        inplace: change the model itself, all or nothing; else it is copied, and the copy shares no memory with it.
        copies: what else the copy has in place of what, by its id.
        left: what the model shall say that was left dense, see `left_dense`; None for no change.

    Raises:
        CompressionError: the model cannot be copied, or holds a layer where a swap in place does not reach. Nothing is
            changed then.
    """
    with ExitStack() as undo:
        target = swap_in_place(model, swaps, undo) if inplace else _in_a_copy(model, swaps, copies or {})
        if left is not None:
            keep_left(target, left, undo)
        undo.pop_all()  # all went well
    return target


def swap_in_place(model: nn.Module, swaps: Sequence[Swap], undo: ExitStack) -> nn.Module:
    """The model itself with every old layer replaced; what is registered with `undo` puts the old ones back.

    Raises:
        CompressionError: see `swapped`.
    """
    replacements = {id(old): (name, new) for name, old, new in swaps}
    _check_reach(model, replacements)
    for _, old, new in swaps:
        for table in HOOK_TABLES:
            hooks, kept = getattr(old, table), kept_hooks(old, table)
            # The very same table, where nothing was taken out: a handle that removes from it goes on doing so.
            _hang(new, table, hooks if kept == hooks else kept, hooks)
        vars(new).update(_attributes(old, new))
    for _, _, new in swaps:
        for wrapped in new._load_state_dict_pre_hooks.values():
            if getattr(wrapped, "with_module", False):
                bound: Any = wrapped
                state = bound.__getstate__()
                undo.callback(bound.__setstate__, state)
                bound.__setstate__({**state, "module": new})
    new_biases, inside = _new_biases(swaps), {id(part) for _, old, _ in swaps for part in old.modules()}
    for parent in list(model.modules()):
        if id(parent) not in inside:
            for name, one in parent._parameters.items():
                if id(one) in new_biases:
                    undo.callback(parent._parameters.__setitem__, name, one)
                    parent._parameters[name] = new_biases[id(one)]
        for name, child in parent._modules.items():  # named_children would skip a second use
            if id(child) in replacements:
                undo.callback(parent._modules.__setitem__, name, child)
                parent._modules[name] = replacements[id(child)][1]
    return replacements[id(model)][1] if id(model) in replacements else model


def _in_a_copy(model: nn.Module, swaps: Sequence[Swap], copies: Mapping[int, Any]) -> nn.Module:
    # A copy that is told the new layers are the copies of the old ones puts them wherever those stood,
    # and never copies a dense weight that would be thrown away.
    memo: dict[int, Any] = {**copies, **{id(old): new for _, old, new in swaps}, **_new_biases(swaps)}
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


def _new_biases(swaps: Sequence[Swap]) -> dict[int, nn.Parameter]:
    """The new layers' biases by the ids of those whose places they take."""
    pairs = [pair for _, old, new in swaps for pair in zip(held(biases(old)), held(biases(new)), strict=True)]
    return {id(old): new for old, new in pairs if old is not None and new is not None}


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
    elif kind_of(old) is None:  # another library's, of which it is not known what all of them have
        usual = vars(old)
    else:
        usual = vars(ConvSpec.read(old).build(device="meta"))
    return {name: value for name, value in vars(old).items() if name not in usual and not hasattr(new, name)}


def _check_reach(model: nn.Module, replacements: Mapping[int, tuple[str, nn.Module]]) -> None:
    for place, module in _held_elsewhere(model):
        if id(module) in replacements:
            error = CompressionError(
                f"the model holds it in the attribute {place!r} too, which a swap in place would leave as it is; "
                "leave inplace=False."
            )
            raise error.at(replacements[id(module)][0])


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
