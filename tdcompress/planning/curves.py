"""One layer's part of a plan that needs nothing of the model: its options, and the compressions to be tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from tdcompress.decompositions import Options
from tdcompress.layers import ConvSpec, FactorizedConv, InputMoments
from tdcompress.layers.moments import whitening_of
from tdcompress.layers.request import Request
from tdcompress.methods import get_method
from tdcompress.planning.options import DENSE, Option, options_of

_HARDER = 4  # times smaller than a layer's share of the budget is the second trial
_EXACT = 1e-6  # an error that is none, and says nothing about what errors do


@dataclass(frozen=True)
class LayerCurve:
    """What is wanted of one layer; it goes to a worker.

    Attributes:
        conv: the layer, as a plain one.
        methods: what it may become, and what each method is told.
        moments: of its inputs, for the error of its features; None for that of its weight.
        tried: the share of its parameters that trials keep; None for no trials.
        seed: of random starts.
    """

    conv: nn.Module
    methods: Mapping[str, Options]
    moments: InputMoments | None
    tried: float | None
    seed: int


def curve_of(wanted: LayerCurve) -> tuple[list[Option], list[tuple[Option, FactorizedConv]]]:
    """The options of a layer, and those of them that are to be tried in its place with their compressions.

    Those are solved by few sweeps: what the rest would take off their errors is much the same for all layers.
    """
    spec = ConvSpec.of(wanted.conv)
    whitening = None if wanted.moments is None else whitening_of(wanted.moments, spec)
    options = options_of(wanted.conv, wanted.methods, whitening)
    layers = []
    for option in _tried(options, wanted.tried):
        kind = get_method(option.method)
        solver = kind.quick(wanted.methods[option.method])
        request = Request(options=solver, rank=option.rank, axes=option.axes, whiten=whitening, seed=wanted.seed)
        layers.append((option, kind.factorized(wanted.conv, request)))
    return options, layers


def _tried(options: Sequence[Option], share: float | None) -> Iterator[Option]:
    if share is None:
        return
    for size in (share, share / _HARDER):
        option = _near(options, size)
        if option is not None and option.error > _EXACT:
            yield option


def _near(options: Sequence[Option], share: float) -> Option | None:
    """The best option at a share of the dense parameters, or the smallest there is; None if there is only dense."""
    smaller = [option for option in options if option.method != DENSE]
    most = share * max(option.parameters for option in options)
    fitting = [option for option in smaller if option.parameters <= most]
    if fitting:
        return min(fitting, key=lambda option: (option.error, option.parameters))
    return min(smaller, key=lambda option: option.parameters, default=None)
