"""What a solver reports beside its factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Solution:
    """How a decomposition was found.

    Attributes:
        relative_error: ‖tensor − approximation‖ / ‖tensor‖, computed from the factors themselves.
        sweeps: how often every factor was updated; 0 for a closed form.
        converged: whether the stopping rule was met before the sweeps ran out.
    """

    relative_error: float
    sweeps: int = 0
    converged: bool = True

    @staticmethod
    def of_groups(solutions: Sequence[Solution], norms: Sequence[float]) -> Solution:
        """The groups of one convolution as one solution.

        Args:
            solutions: one a group.
            norms: the Frobenius norm of each group's kernel.
        """
        total = math.hypot(*norms)
        lost = math.hypot(*(s.relative_error * n for s, n in zip(solutions, norms, strict=True)))
        return Solution(
            relative_error=lost / total if total else 0.0,
            sweeps=max(s.sweeps for s in solutions),
            converged=all(s.converged for s in solutions),
        )
