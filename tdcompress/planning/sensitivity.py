"""How much the output of a model changes with the error of one layer: from trial compressions, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import evaluating, forward
from tdcompress.calibration.batch_norm import estimating
from tdcompress.calibration.calibrate import norms_behind
from tdcompress.errors import CompressionError

_FLOOR = 1e-12


def output_change(model: nn.Module, trial: nn.Module, inputs: Iterable[Any]) -> float:
    """The mean change of the output: the KL divergence of logits, (samples, classes), else the relative squared change.

    BatchNorms behind the compressed layer are calibrated meanwhile.

    Args:
        model: the original.
        trial: a compressed copy of it; its statistics are used up.
        inputs: batches.
    """
    total, count = 0.0, 0
    with torch.no_grad(), evaluating(model, trial), estimating(trial, norms_behind(trial, inputs), model):
        for batch in inputs:
            before, after = (output_of(forward(one, batch)) for one in (model, trial))
            total += float(_change(before.double(), after.double()).sum())
            count += len(before)
    return total / max(1, count)


def _change(before: Tensor, after: Tensor) -> Tensor:  # one number a sample
    if before.ndim == 2 and before.shape[1] > 1:
        first, second = before.log_softmax(1), after.log_softmax(1)
        return (first.exp() * (first - second)).sum(1).clamp(min=0)
    size = before.flatten(1).square().sum(1).clamp(min=torch.finfo(before.dtype).tiny)
    return (after - before).flatten(1).square().sum(1) / size


def output_of(found: Any) -> Tensor:
    """The tensor in what a model returns: itself, `logits`, or the first entry.

    Raises:
        CompressionError: there is none.
    """
    if isinstance(found, Tensor):
        return found
    if isinstance(getattr(found, "logits", None), Tensor):
        return found.logits
    values = list(found.values()) if isinstance(found, Mapping) else found
    if isinstance(values, Sequence) and values and isinstance(values[0], Tensor):
        return values[0]
    raise CompressionError(f"the model's output must be a tensor or start with one, got a {type(found).__name__}.")


def loss_of(trials: Sequence[tuple[float, float]]) -> Callable[[float], float]:
    """The change of the output as a function of the error, through what trials have shown.

    Quadratic up to the first trial; with two, the power that leads from one to the other between them, and from there
    on the same or the square, whichever is higher.

    Args:
        trials: (error, change of the output), one or more.

    >>> loss = loss_of([(0.1, 0.01), (0.2, 0.08)])
    >>> round(loss(0.05), 6), round(loss(0.4), 6)
    (0.0025, 0.64)
    """
    points = sorted((max(error, _FLOOR), max(change, _FLOOR)) for error, change in trials)
    (error, change), (error_2, change_2) = points[0], points[-1]
    change_2 = max(change, change_2)
    power = math.log(change_2 / change) / math.log(error_2 / error) if error_2 > error else 2.0

    def loss(value: float) -> float:
        if value <= error:
            return change * (value / error) ** 2
        if value <= error_2:
            return change * (value / error) ** power
        return change_2 * (value / error_2) ** max(2.0, power)

    return loss
