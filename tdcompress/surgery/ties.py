"""Parameters that several layers share: the tie is kept, or the layers are refused.

Layers with one weight are decomposed once. Where one multiplies by it and the other by its transpose, as an embedding
and the head that is tied to it, the stages of the one are those of the other in reverse order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.kinds import bias_of
from tdcompress.layers.parameters import parameter
from tdcompress.layers.transposed import TransposedLinear
from tdcompress.surgery.holders import biases, held, kind_at, weights
from tdcompress.surgery.selection import Named, ancestors
from tdcompress.surgery.swap import Swap

_OWN_COPY = "give the layer a copy of its own first: layer.weight = nn.Parameter(layer.weight.detach().clone())"


def tied_groups(selected: Sequence[Named]) -> list[list[Named]]:
    """The selected layers, those that share their weight together in one group, in which they become one entry.

    Args:
        selected: layers by name, dense or factorized.

    Returns:
        The groups in the order of their first layers. The first of each is the one to decompose: an embedding if there
        is one, for the others' stages can follow its, or the one that was selected first.

    >>> model = nn.ModuleDict({"head": nn.Linear(4, 9), "words": nn.Embedding(9, 4), "other": nn.Linear(4, 4)})
    >>> model["head"].weight = model["words"].weight
    >>> [[name for name, _ in group] for group in tied_groups(list(model.named_children()))]
    [['words', 'head'], ['other']]
    """
    groups: dict[object, list[Named]] = {}
    for name, layer in selected:
        shared = held(weights(layer))
        # A weight that is computed cannot be told from another by its parameter.
        key = id(layer) if any(one is None for one in shared) else frozenset(map(id, shared))
        groups.setdefault(key, []).append((name, layer))
    return [sorted(group, key=lambda one: _reads_features(one[1])) for group in groups.values()]


def cut_ties(model: nn.Module, selected: Sequence[Named]) -> dict[str, CompressionError]:
    """The layers that share a parameter with a module that stays as it is, so that the swap would cut their tie.

    Layers that share their weight or bias and are selected together are fine: `retie` goes on from there. So is a bias
    that a module around the layer holds too, as BERT's head does: the new layer gets that very parameter.

    Returns:
        Errors by the layers' names, each with the name of the other module's parameter.
    """
    holders: dict[int, list[tuple[str, str, nn.Module]]] = defaultdict(list)
    for name, module in model.named_modules():
        for local, one in module._parameters.items():
            holders[id(one)].append((name, local, module))
    owned = {(id(part), local) for _, layer in selected for part, local in (*weights(layer), *biases(layer))}
    errors = {}
    for name, layer in selected:
        inside, around = {id(part) for part in layer.modules()}, set(ancestors(name)[:-1])
        own_biases = set(map(id, held(biases(layer))))
        for one in layer.parameters():
            for holder, local, module in holders[id(one)]:
                # What a weight is computed from cannot be shared by factors.
                kept = (id(module), local) in owned or (holder in around and id(one) in own_biases)
                if id(module) not in inside and not kept:
                    place = f"{holder}.{local}" if holder else local
                    error = CompressionError(f"it shares a parameter with {place!r}; decompose both, or {_OWN_COPY}.")
                    errors[name] = error
    return errors


def follower(name: str, first: FactorizedConv, conv: nn.Module) -> FactorizedConv:
    """What `conv` becomes if it has the weight that `first` was made from: its stages, for `retie` to fill.

    Args:
        name: of the layer that was decomposed.
        first: what it has become.
        conv: a plain layer that has the same weight.

    Raises:
        CompressionError: the two do not make the same of that weight.
    """
    spec, bias = ConvSpec.of(conv), bias_of(conv)
    try:
        _check_regrouped(first, mirrored=_is_mirrored(first.spec, spec))
    except CompressionError as error:
        raise _misfit(name, error) from None
    layer = type(first)(spec, first.ranks, first.axes, device="meta")
    for stage, weight in zip(layer.weighted, held(weights(first)), strict=True):
        stage.weight.requires_grad_(weight is not None and weight.requires_grad)
    if bias is not None:
        layer[-1].bias = parameter(bias.detach().clone(), like=bias)
    layer.solution, layer.ratio_asked = first.solution, first.ratio_asked
    return layer.train(conv.training)


def misfits(swaps: Sequence[Swap]) -> dict[str, CompressionError]:
    """The new layers that cannot share what the old ones shared, by name."""
    errors = {}
    for first, leader, name, layer in _sharing(swaps):
        try:
            _exchange(leader, layer)
        except CompressionError as error:
            errors[name] = _misfit(first, error)
    return errors


def retie(swaps: Sequence[Swap]) -> None:
    """Let new layers share the parameters that stand for those that the old ones shared.

    Raises:
        CompressionError: the new layers are too different for that.
    """
    for name, error in misfits(swaps).items():
        raise error.at(name)
    for _, leader, _, layer in _sharing(swaps):
        for place, (values, turn) in enumerate(_exchange(leader, layer)):
            if turn and isinstance(layer, FactorizedConv):
                layer[place] = _turned(layer[place])
            setattr(*weights(layer)[place], values)
    taken: dict[int, tuple[nn.Module, str]] = {}
    for _, old, layer in swaps:
        for bias, (module, local) in zip(held(biases(old)), biases(layer), strict=True):
            if bias is not None:
                setattr(module, local, getattr(*taken.setdefault(id(bias), (module, local))))


def _sharing(swaps: Sequence[Swap]) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """The new layers in pairs, by name: one that goes first, and one that shares the weight with it."""
    new = {name: layer for name, _, layer in swaps}
    for (first, _), *others in tied_groups([(name, old) for name, old, _ in swaps]):
        for name, _ in others:
            yield first, new[first], name, new[name]


def _exchange(first: nn.Module, layer: nn.Module) -> list[tuple[nn.Parameter, bool]]:
    """What `first` has for every weight of `layer`, and whether the stage there has to be turned for it.

    Raises:
        CompressionError: it does not fit.
    """
    mirrored = _is_mirrored(_spec(first), _spec(layer))
    _check_regrouped(first, mirrored=mirrored)
    theirs = list(zip(weights(first), _parts(first), strict=True))
    ours = list(zip(weights(layer), _parts(layer), strict=True))
    if len(theirs) != len(ours):
        raise CompressionError("their factors differ in number")
    exchanged = []
    for (source, before), (target, now) in zip(theirs[::-1] if mirrored else theirs, ours, strict=True):
        values: nn.Parameter = getattr(*source)
        turn = (before.input_first == now.input_first) is mirrored
        shape = getattr(*target).shape
        if turn and type(target[0]) not in (nn.Linear, TransposedLinear):
            raise CompressionError(f"a {type(target[0]).__name__} cannot take its factor")
        if (shape[::-1] if turn else shape) != values.shape:
            raise CompressionError("their factors differ in shape")
        exchanged.append((values, turn))
    return exchanged


def _misfit(first: str, error: CompressionError) -> CompressionError:
    return CompressionError(f"it shares its weight with {first!r}, but {error}; {_OWN_COPY}.")


def _is_mirrored(first: ConvSpec, spec: ConvSpec) -> bool:
    """Whether two layers that share their weight multiply by it and by its transpose, and not by the same.

    Raises:
        CompressionError: neither is so.
    """
    if first.input_first == spec.input_first and (first.kernel_shape, first.groups) == (spec.kernel_shape, spec.groups):
        return False
    if first.is_matrix and spec.is_matrix and first.input_first != spec.input_first:
        return True
    raise CompressionError("the two layers do not make the same of it")


def _check_regrouped(layer: nn.Module, *, mirrored: bool) -> None:
    """Refuse to read a stack from its end whose stages see their inputs through a grid.

    Raises:
        CompressionError: it is one.
    """
    if mirrored and isinstance(layer, FactorizedConv) and len(layer.weighted) < len(layer):
        raise CompressionError(f"factors of {layer.method} cannot be read from the other end")


def _turned(stage: Any) -> nn.Module:
    """A linear stage whose weight lies the other way round, for another's parameter to be put into."""
    kind: type[Any] = TransposedLinear if isinstance(stage, nn.Linear) else nn.Linear
    turned: nn.Module = kind(stage.in_features, stage.out_features, bias=False, device="meta")
    turned.bias = stage.bias
    return turned.train(stage.training)


def _spec(layer: nn.Module) -> ConvSpec:
    return layer.spec if isinstance(layer, FactorizedConv) else ConvSpec.read(layer)


def _parts(layer: nn.Module) -> tuple[ConvSpec, ...]:
    return layer.stage_specs if isinstance(layer, FactorizedConv) else (ConvSpec.read(layer),)


def _reads_features(layer: nn.Module) -> bool:
    kind = kind_at(layer)
    return kind is None or kind.reads_features
