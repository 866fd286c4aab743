"""Alternating least squares, extrapolated: what all solvers that sweep in a tensor's own precision share.

Sweeps start from a point extrapolated along the last step, with a restart when the error rises, which saves most of
them (Mitchell, Ye & De Sterck 2020).

Long terms that nearly cancel make the error of a float32 sweep rise by rounding alone. Taken for an overshoot,
that would throw the extrapolation away sweep after sweep, and the error would seem to have converged. So sweeps
are made in the tensor's type until rounding is first seen, and in float64 from there.

No decision is read back from a GPU but once in ten sweeps, so it never waits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tdcompress.decompositions.scalars import Choice, Number, either, scalar

_MOMENTUM_LIMIT = 0.97
_SWEEPS_BETWEEN_CHECKS = 10  # of the error
_TRIAL = 30  # sweeps after which the best of several starts is known
_NOISE = 16  # a rise of the squared error by so many roundings of ‖terms‖² is one of rounding


class Sweeper(Protocol):
    """One update of every factor of a tensor by least squares."""

    tensor: Tensor
    penalty: float  # of Σ ‖term‖² in what is minimized

    def __call__(self, factors: Sequence[Tensor]) -> tuple[list[Tensor], Number, Number]:
        """The swept factors, their relative error, and Σ ‖term‖² over ‖tensor‖²."""

    def in_double(self) -> Sweeper:
        """The same sweep in float64."""


class Run:
    """Extrapolated sweeps from one start.

    Attributes:
        current: the best factors so far.
        loss: the least of what is minimized, squared error and penalty in units of ‖tensor‖²; on the CPU a Python
            number.
        error: the relative error of the best factors.
        sweeps: how many were made.
    """

    def __init__(self, sweep: Sweeper, factors: list[Tensor]) -> None:
        self._sweep = sweep
        self.current = self._point = factors
        start = torch.tensor([math.inf, 1.0], dtype=torch.float64, device=factors[0].device)
        self.loss = self.error = scalar(start[0])
        self.sweeps = 0
        self._age = scalar(start[1])  # sweeps since the last restart
        self._rounded: Choice = False  # whether a rise was one of rounding

    def advance(self, sweeps: int, tol: float) -> bool:
        """Make so many more sweeps at the most; whether they stopped for lack of progress."""
        with torch.inference_mode():  # of small tensors a sixth of the time is spent on being ready for gradients
            converged = self._swept(sweeps, tol)
        self.current, self._point = ([rows.clone() for rows in point] for point in (self.current, self._point))
        return converged

    def _swept(self, sweeps: int, tol: float) -> bool:
        seen = math.inf
        for count in range(1, sweeps + 1):
            self._step()
            if count % _SWEEPS_BETWEEN_CHECKS == 0:
                root = math.sqrt(max(float(self.loss), 0.0))
                if bool(self._rounded) and self._sweep.tensor.dtype != torch.float64 and count < sweeps:
                    self._refine()
                    root = math.inf
                elif seen - root <= _SWEEPS_BETWEEN_CHECKS * tol * root:
                    return True
                seen = root
        return False

    def _step(self) -> None:
        """Sweep from the extrapolated point; keep the result if it is better, else forget the extrapolation."""
        swept, error, length = self._sweep(self._point)
        loss = error**2 + self._sweep.penalty * length
        rises = loss > self.loss
        rounded = rises & (loss - self.loss <= _NOISE * torch.finfo(swept[0].dtype).eps * length)
        # Without extrapolation a sweep can only rise by the rounding of its own loss.
        better = (loss <= self.loss) | rounded | rises & (self._age == 1)
        kept = [either(better, new, old) for new, old in zip(swept, self.current, strict=True)]
        momentum = (self._age - 1) / (self._age + 2)
        momentum = either(momentum < _MOMENTUM_LIMIT, momentum, _MOMENTUM_LIMIT)
        self._point = [_extrapolated(old, new, momentum) for new, old in zip(kept, self.current, strict=True)]
        self._age = either(better, self._age + 1, 1.0)
        self.loss = either(loss < self.loss, loss, self.loss)
        self.error = either(better, error, self.error)
        self._rounded = self._rounded | rounded
        self.current = kept
        self.sweeps += 1

    def _refine(self) -> None:
        """Go on in float64; the loss that rounding has blurred is forgotten, the momentum is not."""
        self._sweep = self._sweep.in_double()
        self.current = [rows.double() for rows in self.current]
        self._point = [rows.double() for rows in self._point]
        self.loss = self.loss + math.inf


def _extrapolated(old: Tensor, new: Tensor, momentum: Number) -> Tensor:
    """The point beyond `new` by so many times the step from `old`."""
    weight = 1 + momentum
    return torch.lerp(old, new, weight.to(new) if isinstance(weight, Tensor) else weight)


def most_promising(runs: Sequence[Run], sweeps: int) -> Run:
    """The best of runs from several starts after a few sweeps, or after `sweeps` if these are fewer."""
    if len(runs) == 1:
        return runs[0]
    for run in runs:
        run.advance(min(_TRIAL, sweeps), 0.0)
    return min(runs, key=lambda run: float(run.loss))
