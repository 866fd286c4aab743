"""Which modules hold what stands for a layer's weight and bias: the layer itself, or its stages."""

from __future__ import annotations

from torch import nn

from tdcompress.layers import FactorizedConv
from tdcompress.layers.adapters import LayerKind
from tdcompress.layers.kinds import kind_of

Place = tuple[nn.Module, str]  # a module, and the name that a parameter has in it


def weights(layer: nn.Module) -> list[Place]:
    """The layer and the name of its weight, or the stages of a factorized one.

    >>> [name for _, name in weights(nn.Linear(2, 3))]
    ['weight']
    """
    if isinstance(layer, FactorizedConv):
        return [(stage, "weight") for stage in layer.weighted]
    kind = kind_of(layer)
    return [(layer, "weight" if kind is None else kind.weight)]


def biases(layer: nn.Module) -> list[Place]:
    """The layer and the name of its bias, or the last stage of a factorized one; it may have none."""
    if isinstance(layer, FactorizedConv):
        return [(layer[-1], "bias")]
    kind = kind_of(layer)
    return [(layer, "bias" if kind is None else kind.bias)]


def held(places: list[Place]) -> list[nn.Parameter | None]:
    """The parameters at these places; None for one that is not there, or that is computed.

    >>> held(biases(nn.Linear(2, 3, bias=False)))
    [None]
    """
    return [module._parameters.get(name) for module, name in places]


def kind_at(layer: nn.Module) -> LayerKind | None:
    """The kind of a dense layer, or that of the layer which a factorized one stands for."""
    return layer.spec.adapter if isinstance(layer, FactorizedConv) else kind_of(layer)
