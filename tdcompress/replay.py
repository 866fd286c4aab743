"""Forwards on the same inputs that differ from some module on: what comes before it is computed once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import forward, output_of
from tdcompress.errors import CompressionError
from tdcompress.watching import Reached, tensors_of, with_tensors

_Ended = list[tuple[nn.Module, Any, list[tuple[Tensor, int]]]]  # a module, its output, and the versions of its tensors


class Replay:
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

    def restart(self, batches: int) -> None:
        """Forget what is kept: for other inputs, or for a place that comes before the last one."""
        self._kept = [[] for _ in range(batches)]

    def run(self, number: int, batch: Any, substitutes: Mapping[nn.Module, nn.Module] | None = None) -> Any:
        """The model's output for a batch, with other modules in some places, none of them before the last `advance`."""
        self._substitutes, self._coming, self._frames = substitutes or {}, self._kept[number][::-1], [[]]
        try:
            return forward(self.model, batch)
        finally:
            self._substitutes = {}  # which are as large as what they stand for

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


def sharing(model: nn.Module) -> nn.Module:
    """A copy of a model with its own modules and buffers, and the same parameters."""
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except (RuntimeError, TypeError) as error:
        raise CompressionError(f"the model cannot be copied ({error}), as compressions that are tried need.") from error
