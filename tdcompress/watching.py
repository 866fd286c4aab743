"""A model's run, watched: what chosen layers are called with, and what they answer.

>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten())
>>> def note(name, call):
...     print(name, tuple(call.input.shape), "->", tuple(call.first_output.shape))
>>> with watching({"0": model[0]}, note):
...     _ = run(model, torch.zeros(2, 3, 5, 5))
0 (2, 3, 5, 5) -> (2, 8, 3, 3)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import forward
from tdcompress.errors import CompressionError


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Its tensors are those of the forward itself, which what comes later may overwrite: `ReLU(inplace=True)` does. Who
    looks at them after the call does so on the copies that `kept` gives.

    Attributes:
        args: the arguments by position.
        kwargs: the arguments by keyword.
        output: what the layer answered; None before it has.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any = None

    @property
    def input(self) -> Tensor:
        """What the layer works on: its first argument, `input=`, or the only tensor that was given by keyword.

        Raises:
            CompressionError: there is no such tensor.

        >>> Call((), {"input": torch.zeros(2, 3)}).input.shape
        torch.Size([2, 3])
        """
        if self.args:
            tensors = [self.args[0]]
        elif "input" in self.kwargs:
            tensors = [self.kwargs["input"]]
        else:
            tensors = [value for value in self.kwargs.values() if isinstance(value, Tensor)]
        if len(tensors) == 1 and isinstance(tensors[0], Tensor):
            return tensors[0]
        given = [type(value).__name__ for value in self.args]
        given += [f"{name}={type(value).__name__}" for name, value in self.kwargs.items()]
        raise CompressionError(
            f"it is called with ({', '.join(given)}), which does not say what its input is; pass one tensor first, or "
            "as input=."
        )

    @property
    def first_output(self) -> Tensor:
        """The output, or the first tensor of an output that has several parts.

        Raises:
            CompressionError: there is none.
        """
        tensor = next(tensors_of(self.output), None)
        if tensor is None:
            raise CompressionError(f"its output is a {type(self.output).__name__} without a tensor in it.")
        return tensor

    def on(self, layer: nn.Module) -> Any:
        """What another layer answers to the same call."""
        return layer(*self.args, **self.kwargs)

    def kept(self) -> Call:
        """A copy that nothing overwrites; its tensors have no graph."""
        return self.changed(lambda tensor: tensor.detach().clone())

    def changed(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with every tensor replaced, also those inside tuples, lists and dicts; each of them once."""
        changed_tensors: dict[int, Tensor] = {}

        def one(tensor: Tensor) -> Tensor:
            if id(tensor) not in changed_tensors:
                changed_tensors[id(tensor)] = change(tensor)
            return changed_tensors[id(tensor)]

        return Call(*(with_tensors(part, one) for part in (self.args, self.kwargs, self.output)))

    @property
    def nbytes(self) -> int:
        """What its tensors take."""
        once = {id(tensor): tensor for tensor in tensors_of((self.args, self.kwargs, self.output))}
        return sum(tensor.numel() * tensor.element_size() for tensor in once.values())

    @property
    def largest(self) -> Tensor:
        """The largest of its tensors."""
        return max(tensors_of((self.args, self.kwargs, self.output)), key=Tensor.numel)


class Reached(Exception):  # noqa: N818, it is no error
    """Raised by who watches, when all that is needed of a forward has been seen; `run` ends it there."""


class Countdown:
    """The calls that are still awaited of a forward, which ends with the last of them.

    Args:
        calls: how many of every name; of others none.

    >>> countdown = Countdown({"conv1": 2})
    >>> [countdown.take(name) for name in ("conv1", "conv2", "conv1", "conv1")]
    [True, False, True, False]
    """

    def __init__(self, calls: Mapping[str, int]) -> None:
        self._left = dict(calls)

    def take(self, name: str) -> bool:
        """Count a call; whether it was awaited."""
        awaited = self._left.get(name, 0) > 0
        if awaited:
            self._left[name] -= 1
        return awaited

    def end(self) -> None:
        """End the forward if nothing is awaited any more: what comes after is of no interest.

        Raises:
            Reached: so it is.
        """
        if not any(self._left.values()):
            raise Reached


@contextmanager
def watching(
    layers: Mapping[str, nn.Module], note: Callable[[str, Call], Any], *, outputs: bool = True
) -> Iterator[None]:
    """Inside the block every call of these layers is told to `note`; no hook is left behind.

    Args:
        layers: modules by name. One that stands under several names is noted under each of them.
        note: called with a name and a call, at its end, in the order of the forward. It gets the forward's own
            tensors, so that nothing is kept but what it keeps. It may raise `Reached`. Of a call that has ended, what
            it returns takes the place of the layer's answer, unless that is None.
        outputs: whether to wait for the layer's answer; otherwise calls are noted as they begin.

    Raises:
        CompressionError: `note` raised it; the layer's name is put in front.
    """

    def hook(name: str) -> Callable[..., None]:
        def noted(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any = None) -> Any:
            try:
                instead = note(name, Call(args, kwargs, output))
            except CompressionError as error:
                raise error.at(name) from None
            return instead if outputs else None

        return noted

    with ExitStack() as stack:
        for name, layer in layers.items():
            register = layer.register_forward_hook if outputs else layer.register_forward_pre_hook
            stack.callback(register(hook(name), with_kwargs=True).remove)
        yield


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch, as `batches.forward` has it; None if a watcher ended the forward before."""
    try:
        return forward(model, batch)
    except Reached:
        return None


def calls_of(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Any, *, most: int | None = None
) -> dict[str, list[Call]]:
    """The calls of some layers in one forward, without gradients, in copies.

    Args:
        model: what runs.
        layers: of its modules, by name.
        batch: as for `batches.forward`.
        most: how many calls of each layer are wanted; all by default. The forward ends when they have been seen.

    Returns:
        A list for every name, empty where the forward never came.

    >>> conv = nn.Conv2d(3, 3, 1)
    >>> model = nn.Sequential(conv, nn.ReLU(inplace=True), conv)
    >>> len(calls_of(model, {"0": conv}, torch.zeros(1, 3, 4, 4))["0"])
    2
    """
    calls: dict[str, list[Call]] = {name: [] for name in layers}

    def note(name: str, call: Call) -> None:
        if most is None or len(calls[name]) < most:
            calls[name].append(call)
            if most is not None and all(len(noted) == most for noted in calls.values()):
                raise Reached  # nothing runs after it that could overwrite this one, so it needs no copy
            calls[name][-1] = call.kept()

    with torch.no_grad(), watching(layers, note):
        run(model, batch)
    return calls


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, inside tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_of(part)


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor replaced, inside tuples, lists and dicts too; the rest is the same."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [with_tensors(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        rebuilt: Any = copy.copy(value)
        for name, part in value.items():
            rebuilt[name] = with_tensors(part, change)
        return rebuilt
    return value
