"""What each solver option buys: our methods on the trained layers, one option changed at a time."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tdcompress.decompositions.options import CPOptions, Options, SVDOptions, TTOptions, TuckerOptions
from tdcompress.methods import METHODS
from tests.benchmarks.sections import LAYERS, RATIOS, conv_of, trained_kernels
from tests.layers.strategies import error_of

VARIANTS: dict[str, dict[str, Options]] = {
    "cp": {
        "CPOptions()": CPOptions(),
        'CPOptions(starts=("random",))': CPOptions(starts=("random",)),
        'CPOptions(starts=("orthogonal", "random"))': CPOptions(starts=("orthogonal", "random")),
        'CPOptions(spatial="joint")': CPOptions(spatial="joint"),
        "CPOptions(penalty=0)": CPOptions(penalty=0),
        "CPOptions(penalty=1e-5)": CPOptions(penalty=1e-5),
        "CPOptions(penalty=1e-3)": CPOptions(penalty=1e-3),
        "CPOptions(tol=1e-5)": CPOptions(tol=1e-5),
        "CPOptions(max_iter=100)": CPOptions(max_iter=100),
    },
    "tucker": {
        "TuckerOptions()": TuckerOptions(),
        "TuckerOptions(candidates=1)": TuckerOptions(candidates=1),
        "TuckerOptions(max_iter=0)": TuckerOptions(max_iter=0),
    },
    "svd": {"SVDOptions()": SVDOptions(), 'SVDOptions(split="channel")': SVDOptions(split="channel")},
    "tt": {
        "TTOptions()": TTOptions(),
        'TTOptions(orders="given")': TTOptions(orders="given"),
        "TTOptions(max_iter=0)": TTOptions(max_iter=0),
    },
}


@dataclass(frozen=True)
class Variant:
    """One set of options over all trained layers and ratios.

    Attributes:
        method: the method's name.
        options: how the options are written.
        error: geometric mean of the error over the defaults'.
        worst: the largest of these ratios.
        seconds: processor time of all cases, the choice of the rank included.
    """

    method: str
    options: str
    error: float
    worst: float
    seconds: float


def variants(layers: Sequence[str] = LAYERS) -> Iterator[Variant]:
    """Every variant of every method."""
    convs = {layer: conv_of(kernel) for layer, kernel in trained_kernels().items() if layer in layers}
    for method, choices in VARIANTS.items():
        defaults: list[float] = []
        for name, options in choices.items():
            began = time.process_time()
            errors = [
                error_of(METHODS[method].from_conv(conv, ratio=ratio, solver=options))
                for conv, ratio in itertools.product(convs.values(), RATIOS)
            ]
            seconds = time.process_time() - began
            defaults = defaults or errors
            ratios = [error / default for error, default in zip(errors, defaults, strict=True)]
            yield Variant(method, name, statistics.geometric_mean(ratios), max(ratios), seconds)
