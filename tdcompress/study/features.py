"""What goes into a layer and comes out of it in the original model: computed once, used by every trial of the layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import evaluating, forward
from tdcompress.errors import CompressionError
from tdcompress.metrics import FeatureMean, Metric

Pair = tuple[tuple[Any, ...], Tensor]  # a layer's arguments and its output

# Activations of one batch: what stays in a core's caches is several times faster than what does not.
_BYTES_PER_BATCH = {"cpu": 2 * 2**20}
_ON_DEVICES = 2**30
LIMIT = 4 * 2**30


class Features:
    """A layer's inputs and outputs in the original model, in evaluation mode, as often as asked.

    They are kept in memory if they take no more than `limit` bytes; otherwise they are computed anew each time.

    Args:
        model: the original model; left as it was.
        layer: the layer's name.
        data: batches of inputs, or one tensor (samples, …) of all of them, which is cut into batches that suit
            the layer.
        limit: bytes.

    Raises:
        CompressionError: the data is empty, or the model's forward does not reach the layer.
    """

    def __init__(self, model: nn.Module, layer: str, data: Iterable[Any] | Tensor, limit: int = LIMIT) -> None:
        self._model, self._layer = model, model.get_submodule(layer)
        self._once = False
        first = next(iter(data), None) if not isinstance(data, Tensor) else data[:1]
        if first is None or not len(first):
            raise CompressionError("the data is empty; feature errors need at least one batch of inputs.")
        pairs = self._computed(first)
        if not pairs:
            raise CompressionError(f"the model's forward never reached {layer!r}.")
        self._once = len(pairs) == 1
        self._batches = torch.split(data, _batch_size(pairs)) if isinstance(data, Tensor) else data
        self._kept: list[Pair] | None = []
        size = 0
        for pair in self._all():
            size += _bytes(pair)
            if size > limit:
                self._kept = None
                break
            self._kept.append(pair)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._kept) if self._kept is not None else self._all()

    def errors(self, approximation: nn.Module, metrics: Iterable[Metric]) -> dict[str, float]:
        """The feature errors of a layer in place of the original one: one pass for all metrics."""
        mean = FeatureMean([metric for metric in metrics if metric.on == "features"])
        with torch.no_grad(), evaluating(approximation):
            for inputs, output in self:
                mean.update(output, approximation(*inputs))
        return mean.compute()

    def _all(self) -> Iterator[Pair]:
        for batch in self._batches:
            yield from self._computed(batch)

    def _computed(self, batch: Any) -> list[Pair]:
        seen: list[Pair] = []

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen.append((inputs, output))
            if self._once:  # what comes after the layer is of no interest
                raise _ReachedError

        handle = self._layer.register_forward_hook(hook)
        try:
            with torch.no_grad(), evaluating(self._model):
                forward(self._model, _channels_last(batch))
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return seen


class _ReachedError(Exception):
    """The layer was reached; nobody sees this."""


def activation_budget(device: torch.device) -> int:
    """How many bytes of activations are best worked on at a time."""
    return _BYTES_PER_BATCH.get(device.type, _ON_DEVICES)


def _batch_size(pairs: list[Pair]) -> int:
    largest = max((tensor for pair in pairs for tensor in _tensors(pair)), key=lambda tensor: tensor.numel())
    budget = activation_budget(largest.device)
    return min(512, max(1, budget // (largest.numel() * largest.element_size())))


def _bytes(pair: Pair) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(pair))


def _tensors(pair: Pair) -> list[Tensor]:
    inputs, output = pair
    return [tensor for tensor in (*inputs, output) if isinstance(tensor, Tensor)]


def _channels_last(batch: Any) -> Any:
    """Images in the memory format in which convolutions are fastest; everything else as it is."""
    if isinstance(batch, Tensor) and batch.ndim == 4:
        return batch.contiguous(memory_format=torch.channels_last)
    return batch
