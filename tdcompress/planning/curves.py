"""One layer's part of a plan that needs nothing of the model: its options, and the compressions to be tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from tdcompress.decompositions import Options
from tdcompress.layers import ConvSpec, FactorizedConv, FisherFactors, InputMoments
from tdcompress.layers.fisher import whitening_of
from tdcompress.layers.kinds import weight_of
from tdcompress.layers.request import Request
from tdcompress.layers.whitening import takes_over_mean
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
        moments: of its inputs, for the error of its features; with the gradients of its outputs, for the predicted
            loss; None for the error of its weight.
        tried: the share of its parameters that trials keep; None for no trials.
        seed: of random starts.
        followers: what is known of the layers that share its weight, for the predicted loss.
    """

    conv: nn.Module
    methods: Mapping[str, Options]
    moments: InputMoments | FisherFactors | None
    tried: float | None
    seed: int
    followers: tuple[FisherFactors, ...] = ()


def curve_of(wanted: LayerCurve) -> tuple[list[Option], list[tuple[Option, FactorizedConv]]]:
    """The options of a layer, and those of them that are to be tried in its place with their compressions.

    By the predicted loss an option's error is ½ tr(G W A Wᵀ) times the share of ‖Rᵀ W L‖² that it loses, where R and L
    are roots of G and of A as channels times positions, see `whitening`.

    What is tried is solved by few sweeps: what the rest would take off its error is much the same for all layers.
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
    if isinstance(wanted.moments, FisherFactors):
        whole = sum(
            one.loss_of_all(weight_of(wanted.conv), centred=takes_over_mean(one.spec))
            for one in (wanted.moments, *wanted.followers)
        )
        options = [replace(option, error=whole * option.error**2) for option in options]
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
