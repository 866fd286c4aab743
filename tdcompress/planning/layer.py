"""One layer's part of a plan: what it may become, and what it shall become."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec
from tdcompress.methods import get_method
from tdcompress.planning.options import DENSE, Option


@dataclass(frozen=True)
class LayerPlan:
    """What one layer may become, and what it shall become.

    Attributes:
        layer: its name.
        spec: what it is.
        options: the curve: every method at many ranks, and dense.
        chosen: which of them it shall become.
        tied: the layers that share its weight, and become the same.
    """

    layer: str
    spec: ConvSpec
    options: tuple[Option, ...]
    chosen: int
    tied: tuple[str, ...] = ()

    @property
    def choice(self) -> Option:
        """What it shall become."""
        return self.options[self.chosen]

    @property
    def dense(self) -> Option:
        """What it is."""
        return next(option for option in self.options if option.method == DENSE)

    def up_to_the_next(self) -> list[Option]:
        """The ranks between what it shall become and the next larger option of the same method, errors interpolated.

        There are none where a rank is more than one number.
        """
        choice, same = self.choice, (self.choice.method, self.choice.axes)
        larger = [one for one in self.options if (one.method, one.axes) == same and one.parameters > choice.parameters]
        if choice.method == DENSE or len(choice.rank) != 1 or not larger:
            return []
        after, kind = min(larger, key=lambda one: one.parameters), get_method(choice.method)
        modes, between = kind.modes_of(self.spec, choice.axes), []
        for rank in range(choice.rank[0] + 1, after.rank[0]):
            parameters = self.spec.groups * kind.parameters_at(modes, (rank,))
            way = (parameters - choice.parameters) / (after.parameters - choice.parameters)
            error = choice.error ** (1 - way) * after.error**way
            between.append(replace(choice, rank=(rank,), parameters=parameters, error=error))
        return between

    def check(self) -> None:
        """Refuse an entry whose parts do not fit together, as one from a file may not.

        Raises:
            CompressionError: none of the options is chosen, dense is not among them, or the kind of layer is unknown.
        """
        if not 0 <= self.chosen < len(self.options):
            raise CompressionError(f"there are {len(self.options)} options, and number {self.chosen} is chosen.").at(
                self.layer
            )
        if all(option.method != DENSE for option in self.options):
            raise CompressionError("dense is not among the options.").at(self.layer)
        _ = self.spec.adapter
