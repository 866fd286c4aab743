"""What goes into a layer and comes out of it in the original model: computed once, used by every trial of the layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import evaluating
from tdcompress.errors import CompressionError
from tdcompress.metrics import Metric, RunningMean
from tdcompress.watching import Call, calls_of

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
        self._model, self._name, self._layer = model, layer, model.get_submodule(layer)
        first = next(iter(data), None) if not isinstance(data, Tensor) else data[:1]
        if first is None or not len(first):
            raise CompressionError("the data is empty; feature errors need at least one batch of inputs.")
        self._most: int | None = None
        self._fast = True
        calls = self._first(first)
        if not calls:
            raise CompressionError(f"the model's forward never reached {layer!r}.")
        self._most = 1 if len(calls) == 1 else None  # then what comes after the layer is of no interest
        self._batches = torch.split(data, _batch_size(calls)) if isinstance(data, Tensor) else data
        self._kept: list[Call] | None = []
        size = 0
        for call in self._all():
            size += call.nbytes
            if size > limit:
                self._kept = None
                break
            self._kept.append(call.kept() if self._most else call)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._kept) if self._kept is not None else self._all()

    def errors(self, approximation: nn.Module, metrics: Iterable[Metric]) -> dict[str, float]:
        """The feature errors of a layer in place of the original one: one pass for all metrics."""
        mean = RunningMean([metric for metric in metrics if metric.on == "features"])
        try:
            with torch.no_grad(), evaluating(approximation):
                for call in self:
                    mean.update(call.first_output, call.on(approximation))
        except CompressionError as error:
            raise error.at(self._name) from None
        return mean.compute()

    def _all(self) -> Iterator[Call]:
        for batch in self._batches:
            yield from self._computed(batch)

    def _first(self, batch: Any) -> list[Call]:
        try:
            return self._computed(batch)
        except RuntimeError:  # a `view` in the model that needs the plain memory format, or an error of its own
            self._fast = False
            return self._computed(batch)

    def _computed(self, batch: Any) -> list[Call]:
        if isinstance(batch, Tensor):
            batch = copied(batch, self._fast)
        with evaluating(self._model):
            return calls_of(self._model, {self._name: self._layer}, batch, most=self._most)[self._name]


def copied(batch: Tensor, fast: bool) -> Tensor:
    """A copy that a model may overwrite.

    Args:
        batch: (samples, …).
        fast: whether images shall be in the memory format in which convolutions are fastest.
    """
    return batch.clone(memory_format=torch.channels_last if fast and batch.ndim == 4 else torch.preserve_format)


def activation_budget(device: torch.device) -> int:
    """How many bytes of activations are best worked on at a time."""
    return _BYTES_PER_BATCH.get(device.type, _ON_DEVICES)


def _batch_size(calls: Iterable[Call]) -> int:
    largest = max((call.largest for call in calls), key=Tensor.numel)
    budget = activation_budget(largest.device)
    return min(512, max(1, budget // (largest.numel() * largest.element_size())))
