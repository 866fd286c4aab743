"""Trial compressions: one layer in place of the original's, and how much the output of the model changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import evaluating, first_of, first_samples, forward, output_of
from tdcompress.calibration.batch_norm import Estimate, Pooled, Reference, is_estimated
from tdcompress.errors import CompressionError
from tdcompress.outputs import Output, divergence
from tdcompress.replay import Replay, sharing
from tdcompress.watching import Call, watching

_FLOOR = 1e-12
_STEEPEST = 300.0  # logarithm of what is foreseen, over what was tried, for the whole weight
_SAMPLES = 256  # that are enough to see how much the output changes,
_FEWEST = 4  # and the fewest of any model,
_ROWS = 1280  # outputs, one a sample or one a token, times layers that are tried


def few_of(model: nn.Module, inputs: Iterable[Any], layers: int) -> list[Any]:
    """The first inputs, as many as trials of so many layers need and can afford.

    Args:
        model: in evaluation mode; what its output has a row for is counted, samples or tokens.
        inputs: the batches.
        layers: how many there are.
    """
    first = next(iter(inputs), None)
    if first is None:
        return []
    start, count = first_samples(first, _FEWEST)
    with torch.no_grad():
        output = output_of(forward(model, start))
    rows = output.numel() / count / output.shape[-1 if output.ndim == 3 else min(1, output.ndim - 1)]
    wanted = min(max(_ROWS // max(1, layers), 32), _SAMPLES)
    most = min(max(math.ceil(wanted / max(1.0, rows)), _FEWEST), _SAMPLES)
    return first_of(inputs, most)


class Trials:
    """One compressed layer after the other in the same place of a model, on the same few inputs.

    What a forward computes before the layer is computed once, see `Replay`. BatchNorms behind the layer are
    calibrated meanwhile.

    Args:
        model: the original; it is left as it was.
        names: the layers that may be tried.
        inputs: the batches.

    Attributes:
        order: the layers that a forward meets, in the order in which it does.

    Raises:
        CompressionError: the data is empty, or the model cannot be copied.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], inputs: Iterable[Any]) -> None:
        self._batches = list(inputs)
        if not self._batches:
            raise CompressionError("the data is empty; trials need at least one batch of inputs.")
        self._replay = Replay(sharing(model).eval(), len(self._batches))
        self._originals = {name: module for name, module in model.named_modules() if is_estimated(module)}
        pooled = {name: Pooled() for name in self._originals}
        met: dict[str, None] = {}
        self._outputs: list[Tensor] = []
        self._seen: list[dict[str, Pooled]] = []  # what each norm has seen after each batch

        def note(name: str, call: Call) -> None:
            met.setdefault(name)
            if name in pooled:
                pooled[name].update(call.input)

        watched = {name: self._replay.modules[name] for name in (*names, *pooled)}
        with torch.no_grad(), watching(watched, note, outputs=False):
            for number, batch in enumerate(self._batches):
                self._outputs.append(output_of(self._replay.run(number, batch)).clone())
                self._seen.append({name: copy.copy(one) for name, one in pooled.items()})
        self._met = list(met)
        self.order = [name for name in met if name not in pooled]

    def change(self, name: str, layer: nn.Module, others: Mapping[str, nn.Module] | None = None) -> float:
        """The mean change of the output with another layer in a place.

        Of logits, (samples, classes), it is the KL divergence, otherwise the relative squared change.

        Args:
            name: the place, one of `order`; quickest if they come in that order.
            layer: what runs there instead.
            others: what runs in other places meanwhile, none of them before it.
        """
        replay, place = self._replay, self._replay.modules[name]
        behind = [norm for norm in self._met[self._met.index(name) + 1 :] if norm in self._originals]
        estimates = {norm: Estimate(replay.modules[norm]) for norm in behind}
        instead = {place: layer, **{replay.modules[other]: one for other, one in (others or {}).items()}}
        total, count = 0.0, 0
        with torch.no_grad(), ExitStack() as stack:
            for number, (batch, goal) in enumerate(zip(self._batches, self._outputs, strict=True)):
                replay.advance(number, batch, place, goal)
            stack.enter_context(evaluating(*instead.values()))
            for norm in behind:
                stack.callback(replay.modules[norm].load_state_dict, self._originals[norm].state_dict())
            norms = {norm: replay.modules[norm] for norm in behind}
            stack.enter_context(watching(norms, lambda norm, call: estimates[norm].update(call.input), outputs=False))
            for number, (batch, goal) in enumerate(zip(self._batches, self._outputs, strict=True)):
                for norm, estimate in estimates.items():
                    estimate.reference = Reference(self._originals[norm], self._seen[number][norm])
                found = output_of(replay.run(number, batch, instead))
                try:
                    total += float(_change(goal, found).sum())
                except CompressionError as error:
                    raise error.at(name) from None
                count += len(goal)
        return total / max(1, count)


def _change(before: Tensor, after: Tensor) -> Tensor:  # one number a sample
    are_logits = before.ndim == 2 and before.shape[1] > 1
    return divergence(*(Output(one.flatten(1), are_logits) for one in (before, after)))


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
        return change_2 * (value / error_2) ** min(max(2.0, power), _STEEPEST / math.log(max(1.0, value) / error_2))

    return loss
