"""Parameters that several layers share: the tie is kept, or the layers are refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch import nn

from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.surgery.selection import Named
from tdcompress.surgery.swap import Swap

Place = tuple[nn.Module, str]  # a stage, and its weight or its bias

_OWN_COPY = "give the layer a copy of its own first: layer.weight = nn.Parameter(layer.weight.detach().clone())"


def cut_ties(model: nn.Module, selected: Sequence[Named]) -> dict[str, CompressionError]:
    """The layers that share a parameter with a module that stays as it is, so that the swap would cut their tie.

    Layers that share their weight or bias and are selected together are fine: `retie` goes on from there.

    Returns:
        Errors by the layers' names, each with the name of the other module's parameter.
    """
    holders: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, module in model.named_modules():
        for local, parameter in module._parameters.items():
            place = f"{name}.{local}" if name else local
            holders[id(parameter)].append((place, id(module)))
    owned = {id(part) for _, layer in selected for part in _stages(layer)}
    found = {}
    for name, layer in selected:
        inside = {id(part) for part in layer.modules()}
        for parameter in layer.parameters():
            for place, module in holders[id(parameter)]:
                # What a weight is computed from cannot be shared by factors.
                kept = module in owned and place.rpartition(".")[2] in ("weight", "bias")
                if module not in inside and not kept:
                    error = CompressionError(f"it shares a parameter with {place!r}; decompose both, or {_OWN_COPY}.")
                    found[name] = error
    return found


def misfits(swaps: Sequence[Swap]) -> dict[str, CompressionError]:
    """The new layers that cannot share what the old ones shared, by name: their factors differ in shape."""
    found = {}
    for name, local, ours, first, theirs in _shared(swaps):
        if [_form(*place) for place in ours] != [_form(*place) for place in theirs]:
            found[name] = CompressionError(
                f"it shares its {local} with {first!r}, but their factors differ in shape; {_OWN_COPY}."
            )
    return found


def retie(swaps: Sequence[Swap]) -> None:
    """Let new layers share the parameters that stand for those that the old ones shared.

    Raises:
        CompressionError: the new layers are too different for that.
    """
    for name, error in misfits(swaps).items():
        raise error.at(name)
    for _, _, ours, _, theirs in _shared(swaps):
        for (module, entry), (source, _) in zip(ours, theirs, strict=True):
            setattr(module, entry, getattr(source, entry))


def _shared(swaps: Sequence[Swap]) -> Iterator[tuple[str, str, list[Place], str, list[Place]]]:
    """Every layer that shares its weight or bias with one before: its name, which, its places, and the other's."""
    firsts: dict[tuple[int, ...], tuple[str, list[Place]]] = {}
    for name, old, new in swaps:
        for local in ("weight", "bias"):
            shared = tuple(id(module._parameters.get(entry)) for module, entry in _places(old, local))
            if shared == (id(None),):
                continue
            if shared in firsts:
                yield (name, local, _places(new, local), *firsts[shared])
            else:
                firsts[shared] = name, _places(new, local)


def _stages(layer: nn.Module) -> list[nn.Module]:
    return list(layer) if isinstance(layer, FactorizedConv) else [layer]


def _places(layer: nn.Module, local: str) -> list[Place]:
    """The modules that hold what stands for a layer's weight or bias."""
    stages = _stages(layer)
    return [(stage, local) for stage in (stages if local == "weight" else stages[-1:])]


def _form(module: nn.Module, entry: str) -> tuple[type[nn.Module], tuple[int, ...]]:
    return type(module), tuple(getattr(module, entry).shape)
