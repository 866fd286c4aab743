"""What is asked of a layer, and what the search for it found; both are data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Generic

import torch

from tdcompress.decompositions import Solution
from tdcompress.errors import CompressionError
from tdcompress.layers.arranging import MethodOptions
from tdcompress.layers.fisher import FisherFactors
from tdcompress.layers.method import Factors
from tdcompress.layers.moments import InputMoments
from tdcompress.layers.whitening import Whitening
from tdcompress.shapes import AskedRank, Axes, Rank


@dataclass(frozen=True, eq=False, kw_only=True)
class Request(Generic[MethodOptions]):
    """How a layer shall be factorized; `FactorizedConv.from_conv` explains the fields.

    Attributes:
        options: what the method is told, its own defaults included.
        ratio: the share of the parameters to remove.
        rank: a rank, or with a ratio the name of a rule.
        axes: the only arrangement of the spatial axes to consider; None for all that the method and its options have.
        whiten: by the inputs' moments; None for the weights as they are.
        seed: what random starts are drawn from.
    """

    options: MethodOptions
    ratio: float | None = None
    rank: AskedRank = None
    axes: Axes | None = None
    whiten: InputMoments | FisherFactors | Whitening | None = None
    seed: int | torch.Generator = 0

    def check(self) -> None:
        """Refuse, before anything is said of their values, a ratio and a rank together, or neither.

        Raises:
            CompressionError: it is so, and the rank is not the name of a rule.
        """
        if not isinstance(self.rank, str) and (self.ratio is None) == (self.rank is None):
            given = "neither" if self.ratio is None else f"both ratio={self.ratio} and rank={self.rank}"
            raise CompressionError(f"give either a ratio or a rank, got {given}.")

    @property
    def bound(self) -> float | None:
        """The ratio that must be reached; None where a rank is given, or proposed by a rule, which may miss it."""
        return None if isinstance(self.rank, str) else self.ratio

    def generator(self) -> torch.Generator:
        """What random starts are drawn from: of a number always a fresh one.

        Raises:
            CompressionError: the seed is neither a number nor a generator.
        """
        if isinstance(self.seed, torch.Generator):
            return self.seed
        if isinstance(self.seed, Integral):
            return torch.Generator().manual_seed(int(self.seed))
        raise CompressionError(f"seed must be a whole number or a torch.Generator, got {self.seed!r}.")


@dataclass(frozen=True, eq=False)
class Candidate(Generic[Factors]):
    """An arrangement and a rank that were tried, and what came of them.

    Attributes:
        axes: the arrangement of the spatial axes.
        rank: the rank.
        decompositions: the factors, one a group.
        solution: how they were found, all groups together.
        error: by which they are compared with others; see `Method.compared_by`.
    """

    axes: Axes
    rank: Rank
    decompositions: Sequence[Factors]
    solution: Solution
    error: float
