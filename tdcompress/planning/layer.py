"""One layer's part of a plan: what it may become, and what it shall become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdcompress.layers import ConvSpec
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

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> LayerPlan:
        """What `dataclasses.asdict` gave, back from JSON, which has lists for tuples."""
        options = tuple(
            Option(**{**one, "rank": tuple(one["rank"]), "axes": tuple(map(tuple, one["axes"]))})
            for one in fields["options"]
        )
        spec: dict[str, Any] = {key: _as_tuples(value) for key, value in fields["spec"].items()}
        return LayerPlan(fields["layer"], ConvSpec(**spec), options, fields["chosen"], tuple(fields.get("tied", ())))


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
