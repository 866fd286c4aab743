"""What a forward costs: what its layers are called with, multiply-adds, and time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from tdcompress.batches import called
from tdcompress.watching import Call, watching

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]  # of a forward, by position and by keyword
_WARM_UP = 3


def as_call(example_inputs: Any) -> Arguments:
    """Positional and keyword arguments of a forward: from a tensor, a tuple, or a dict."""
    if isinstance(example_inputs, Mapping):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def layer_calls(model: nn.Module, layers: Mapping[str, nn.Module], arguments: Arguments) -> dict[str, list[Call]]:
    """What every layer is called with in one forward of the model, in copies; empty for one that is not called."""
    calls: dict[str, list[Call]] = defaultdict(list)

    def note(name: str, call: Call) -> None:
        calls[name].append(call.kept())

    with watching(layers, note, outputs=False):
        called(model, *arguments)
    return calls


def count_multiply_adds(run: Callable[[], None]) -> int:
    """The multiply-adds of whatever `run` computes."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    with counter:
        run()
    return int(counter.get_total_flops()) // 2  # it counts a multiplication and an addition as two


class _Whole(AbstractContextManager[None]):
    """In place of the counter's `ModuleTracker`: all that is computed is of one whole.

    That one hooks every module for sums that nobody reads here, and without gradients it fails at a module that is
    given a view of a parameter, as DeBERTa's are. What it does as well stays: under a hook on all modules stacks run
    their plain stages, whose multiply-adds are meant.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        self._hook = register_module_forward_pre_hook(lambda *_: None)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def median_milliseconds(before: Callable[[], None], after: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median times of both, taken in turn so that whatever slows the machine down slows both."""
    times: tuple[list[float], list[float]] = [], []
    for turn in range(_WARM_UP + rounds):
        for place in (0, 1) if turn % 2 else (1, 0):
            seconds = _seconds((before, after)[place])
            if turn >= _WARM_UP:
                times[place].append(1e3 * seconds)
    return median(times[0]), median(times[1])


def _seconds(run: Callable[[], None]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
