"""What each solver option buys: our methods on the trained layers, one option changed at a time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from tdcompress.decompositions.options import CPOptions, Options, TTOptions, TuckerOptions
from tdcompress.methods import METHODS
from tests.benchmarks.sections import LAYERS, RATIOS, trained_kernels

VARIANTS: dict[str, dict[str, Options]] = {
    "cp": {
        "CPOptions()": CPOptions(),
        'CPOptions(starts=("random",))': CPOptions(starts=("random",)),
        'CPOptions(starts=("orthogonal", "random"))': CPOptions(starts=("orthogonal", "random")),
        'CPOptions(spatial="joint")': CPOptions(spatial="joint"),
        "CPOptions(max_iter=100)": CPOptions(max_iter=100),
    },
    "tucker": {
        "TuckerOptions()": TuckerOptions(),
        "TuckerOptions(candidates=1)": TuckerOptions(candidates=1),
        "TuckerOptions(max_iter=0)": TuckerOptions(max_iter=0),
    },
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
        seconds: of all cases, the choice of the rank included.
    """

    method: str
    options: str
    error: float
    worst: float
    seconds: float


def variants(layers: Sequence[str] = LAYERS) -> Iterator[Variant]:
    """Every variant of every method."""
    convs = {layer: _conv(kernel) for layer, kernel in trained_kernels().items() if layer in layers}
    for method, choices in VARIANTS.items():
        defaults: list[float] = []
        for name, options in choices.items():
            began = time.perf_counter()
            errors = [
                METHODS[method].from_conv(conv, ratio=ratio, solver=options).solution.relative_error
                for conv, ratio in itertools.product(convs.values(), RATIOS)
            ]
            seconds = time.perf_counter() - began
            defaults = defaults or errors
            ratios = [error / default for error, default in zip(errors, defaults, strict=True)]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            yield Variant(method, name, mean, max(ratios), seconds)


def _conv(kernel: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), bias=False, device="meta")
    conv.weight = nn.Parameter(kernel)
    return conv
