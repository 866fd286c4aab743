"""The trials of a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from examples.paper.presets import Preset

_DETERMINISTIC = ("tucker", "tt")  # a method that is not known to be is taken to depend on the seed


@dataclass(frozen=True)
class Trial:
    """One layer decomposed by one method to one level, and what follows, in one repetition.

    Attributes:
        layer: the layer's name.
        method: a registered name.
        ratio: share of the layer's parameters to remove.
        run: number of the repetition, from 0.
    """

    layer: str
    method: str
    ratio: float
    run: int

    def __str__(self) -> str:
        return f"{self.layer} {self.method} {self.ratio:.0%} run {self.run}"

    @property
    def compression(self) -> tuple[str, str, float, int]:
        """What the decomposition depends on: trials that agree here share one."""
        return self.layer, self.method, self.ratio, 0 if self.method in _DETERMINISTIC else self.run


def trials(preset: Preset) -> Iterator[Trial]:
    """All trials, layer by layer, and those that share a decomposition one after the other.

    >>> from examples.paper.presets import PRESETS
    >>> first, *others = trials(PRESETS["garipov-fmnist"])
    >>> first, len(others) + 1
    (Trial(layer='conv2', method='cp', ratio=0.1, run=0), 375)
    """
    for layer, method, ratio, run in product(preset.layers, preset.methods, preset.ratios, range(preset.runs)):
        yield Trial(layer, method, ratio, run)
