"""What a solver reports beside its factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Solution:
    """How a decomposition was found.

    Attributes:
        relative_error: ‖tensor − approximation‖ / ‖tensor‖, computed from the factors themselves.
        sweeps: how often every factor was updated; 0 for a closed form.
        converged: whether the sweeps stopped for lack of progress before they ran out.
        seconds: wall time of this solve; the choice of the rank, and candidates that lost, are not in it.
        sensitivity: for CP, what the squared error grows by, in units of ‖approximation‖², per unit of variance of
            independent noise on the factors (Tichavský, Phan & Cichocki 2019); None for other methods. A
            large one means terms that nearly cancel, which neither half precision nor fine-tuning likes.
    """

    relative_error: float
    sweeps: int = 0
    converged: bool = True
    seconds: float = 0.0
    sensitivity: float | None = None

    @staticmethod
    def of_groups(solutions: Sequence[Solution], norms: Sequence[float]) -> Solution:
        """The groups of one convolution as one solution.

        Args:
            solutions: one a group.
            norms: the Frobenius norm of each group's kernel.
        """
        total = math.hypot(*norms)
        error = math.hypot(*(s.relative_error * n for s, n in zip(solutions, norms, strict=True)))
        sensitivities = [s.sensitivity for s in solutions if s.sensitivity is not None]
        return Solution(
            relative_error=error / total if total else 0.0,
            sweeps=max(s.sweeps for s in solutions),
            converged=all(s.converged for s in solutions),
            seconds=sum(s.seconds for s in solutions),
            sensitivity=max(sensitivities) if sensitivities else None,
        )


class Decomposition(Protocol):
    """What all results of solvers have, beside the factors of their own."""

    @property
    def solution(self) -> Solution:
        """How the factors were found."""
