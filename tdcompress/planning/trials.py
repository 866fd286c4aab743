"""Trial compressions: one layer in place of the original's, and how much the output of the model changes."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import evaluating, first_samples, forward, output_of
from tdcompress.calibration.batch_norm import Estimate, Pooled, Reference, is_estimated
from tdcompress.errors import CompressionError
from tdcompress.watching import Call, Reached, tensors_of, watching, with_tensors

_FLOOR = 1e-12
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
    missing = min(max(math.ceil(wanted / max(1.0, rows)), _FEWEST), _SAMPLES)
    few = []
    for batch in inputs:
        piece, count = first_samples(batch, missing)
        few.append(piece)
        missing -= count
        if missing <= 0:
            break
    return few


class Trials:
    """One compressed layer after the other in the same place of a model, on the same few inputs.

    What a forward computes before the layer is computed once, see `_Replay`. BatchNorms behind the layer are
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
        self._replay = _Replay(_sharing(model).eval(), len(self._batches))
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
                total += float(_change(goal.double(), found.double()).sum())
                count += len(goal)
        return total / max(1, count)


_Ended = list[tuple[nn.Module, Any, list[tuple[Tensor, int]]]]  # a module, its output, and the versions of its tensors


class _Replay:
    """Forwards on the same inputs that differ from some module on: what ends before that is not computed again.

    The outputs of the outermost modules that have ended by then are kept, and handed out as copies. This is right for
    a model whose forward does the same every time it is called; `advance` tests whether it is.

    Args:
        model: its modules' forwards are replaced.
        batches: how many there are.
    """

    def __init__(self, model: nn.Module, batches: int) -> None:
        self.model, self.modules = model, dict(model.named_modules(remove_duplicate=False))
        self._kept: list[_Ended] = [[] for _ in range(batches)]
        self._trusted = True
        self._tests = 0
        self._stop: nn.Module | None = None
        self._substitutes: Mapping[nn.Module, nn.Module] = {}
        self._frames: list[_Ended] = []  # what has ended, by the module that runs it
        self._coming: _Ended = []  # what need not be computed, next one last
        for module in model.modules():
            try:
                module.forward = self._instead(module, module.forward)
            except (AttributeError, RuntimeError):  # a scripted one is run as it is
                continue

    def run(self, number: int, batch: Any, substitutes: Mapping[nn.Module, nn.Module] | None = None) -> Any:
        """The model's output for a batch, with other modules in some places, none of them before the last `advance`."""
        self._substitutes, self._coming, self._frames = substitutes or {}, self._kept[number][::-1], [[]]
        return forward(self.model, batch)

    def advance(self, number: int, batch: Any, place: nn.Module, goal: Tensor) -> None:
        """Have what is computed before a module, up to its first call.

        Args:
            number: of the batch.
            batch: what it is.
            place: the module.
            goal: the model's output for the batch.
        """
        if not self._trusted:
            return
        self._stop = place
        try:
            self.run(number, batch)
            self._trusted = False  # it was called before and is not now
        except Reached:
            ended = [entry for frame in self._frames for entry in frame]
            # What a successor has overwritten is computed anew from what comes before it.
            self._kept[number] = [entry for entry in ended if all(t._version == v for t, v in entry[2])]
        finally:
            self._stop = None
        self._tests += 1
        # At first, and ever more rarely, for a full forward is what shall be saved.
        if self._tests & (self._tests - 1) == 0 and self._trusted:
            self._trusted = torch.equal(output_of(self.run(number, batch)), goal)
        if not self._trusted:
            self._kept = [[] for _ in self._kept]

    def _instead(self, module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def run(*args: Any, **kwargs: Any) -> Any:
            if module is self._stop:
                raise Reached
            if module in self._substitutes:
                return self._substitutes[module](*args, **kwargs)
            if self._coming and self._coming[-1][0] is module:
                entry = self._coming.pop()
                self._frames[-1].append(entry)
                return with_tensors(entry[1], Tensor.clone)
            if self._stop is None:
                return own(*args, **kwargs)
            self._frames.append([])
            output = own(*args, **kwargs)
            self._frames.pop()
            self._frames[-1].append((module, output, [(tensor, tensor._version) for tensor in tensors_of(output)]))
            return output

        return run


def _sharing(model: nn.Module) -> nn.Module:
    """A copy of a model with its own modules and buffers, and the same parameters."""
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except (RuntimeError, TypeError) as error:
        raise CompressionError(f"the model cannot be copied ({error}); plan without data.") from error


def _change(before: Tensor, after: Tensor) -> Tensor:  # one number a sample
    if before.ndim == 2 and before.shape[1] > 1:
        first, second = before.log_softmax(1), after.log_softmax(1)
        return (first.exp() * (first - second)).sum(1).clamp(min=0)
    size = before.flatten(1).square().sum(1).clamp(min=torch.finfo(before.dtype).tiny)
    return (after - before).flatten(1).square().sum(1) / size


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
