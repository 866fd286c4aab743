"""Evaluation of many models that begin alike: what comes out of the beginning is computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tdcompress.metrics import evaluating
from tdcompress.study.chains import folded, hooked, links, makes_new_memory, sequential
from tdcompress.study.features import LIMIT, activation_budget, copied

_WEIGHTS_PER_BYTE = 8  # bytes of weights for one of activations: a batch has to be worth moving (and rounding) them
_FEW = 2  # samples that show what comes out of a link: a norm without running statistics refuses a single one

State = tuple[list[tuple[str, str]], dict[str, Tensor]]


class PrefixCache:
    """The outputs of models that differ from `model` in a later part, computed from where they differ on.

    A model that is an `nn.Sequential`, nested ones included, is a chain of links. Those at the beginning whose
    parameters and buffers equal the original's, bit for bit, are not run again: what comes out of them is kept.
    Any other model is one link, and is run as a whole.

    The outputs are those of evaluation mode up to rounding: BatchNorm is multiplied into the convolution before it, and
    a factorized convolution that is no smaller than about the dense one is run as that. Links that might write get
    copies, so neither the inputs nor what is kept is overwritten by whatever a model does in place. Where a BatchNorm
    without running statistics makes samples depend on each other, all of them are one batch.

    Args:
        model: the original.
        inputs: (samples, …), on the model's device.
        limit: bytes that may be kept.
        autocast: compute in bfloat16 where PyTorch's autocast does, several times as fast on a CPU that has units for
            it; otherwise in the model's own precision.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()).eval()
        >>> images = torch.randn(10, 1, 6, 6)
        >>> cache = PrefixCache(model, images)
        >>> torch.allclose(torch.cat(list(cache.outputs(model))), model(images), atol=1e-5)
        True
    """

    def __init__(self, model: nn.Module, inputs: Tensor, limit: int = LIMIT, autocast: bool = False) -> None:
        self._links = links(model)
        self._states = [_state(link) for _, link in self._links]
        self._weights = [sum(parameter.nbytes for parameter in link.parameters()) for _, link in self._links]
        self._inputs, self._limit = inputs, limit
        self._precision = partial(torch.autocast, inputs.device.type, torch.bfloat16, autocast)
        self._together = any(isinstance(m, _BatchNorm) and m.running_mean is None for m in model.modules())
        with self._precision():
            self._fast = _runs_fast(self._links, inputs[:_FEW])
            self._sizes = _sizes(self._links, copied(inputs[:_FEW], fast=False))
        self._place, self._kept = 0, inputs

    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        """The model's outputs for all inputs, batch by batch, in their order.

        Args:
            model: of the original's architecture, but for factorized layers; left as it was.
        """
        chain = links(model)
        start = self._advance(min(self._alike(chain), len(chain) - 1))
        tail = folded(sequential(chain[start:]), self._fast)
        for batch in torch.split(self._kept if start else self._inputs, self._batch_size(start)):
            with self._precision():
                answer = _answer(tail, _for(tail, batch, self._fast))
            yield answer

    def _alike(self, chain: list[tuple[str, nn.Module]]) -> int:
        """How many links at the beginning are the original's."""
        for place, ((name, link), (original, _), state) in enumerate(
            zip(chain, self._links, self._states, strict=False)
        ):
            if name != original or hooked(link) or not _same(_state(link), state):
                return place
        return min(len(chain), len(self._links))

    def _advance(self, place: int) -> int:
        """Have what goes into this link, or into the last one before it whose input is not too large to keep."""
        place = max(at for at in range(place + 1) if not at or self._sizes[at] * len(self._inputs) <= self._limit)
        if not place or place == self._place:
            return place
        if place < self._place:
            self._place, self._kept = 0, self._inputs
        part = folded(sequential(self._links[self._place : place]), self._fast)
        with self._precision():
            self._kept = _run(part, self._kept, self._batch_size(self._place, place), self._fast)
        self._place = place
        return place

    def _batch_size(self, start: int, end: int | None = None) -> int:
        if self._together:
            return max(1, len(self._inputs))
        largest = max((size for size in self._sizes[start:end] if size < math.inf), default=1)
        weights = sum(self._weights[start:end])
        budget = max(activation_budget(self._inputs.device), weights / _WEIGHTS_PER_BYTE)
        return min(512, max(1, int(budget / max(1, largest))))


def _state(link: nn.Module) -> State:
    modules = [(type(module).__name__, module.extra_repr()) for module in link.modules()]
    # Not state_dict(), which leaves out buffers that are not persistent.
    tensors = [*link.named_parameters(remove_duplicate=False), *link.named_buffers(remove_duplicate=False)]
    return modules, {name: value.detach() for name, value in tensors}


def _same(first: State, second: State) -> bool:
    if first[0] != second[0] or first[1].keys() != second[1].keys():
        return False
    return all(torch.equal(value, second[1][name]) for name, value in first[1].items())


def _runs_fast(chain: list[tuple[str, nn.Module]], few: Tensor) -> bool:
    """Whether the links can do with images in another memory format; a `view` between them cannot."""
    try:
        _answer(folded(sequential(chain)), copied(few, fast=True))
    except RuntimeError:  # if it is an error of their own, running them as they are will raise it
        return False
    return True


def _sizes(chain: list[tuple[str, nn.Module]], few: Tensor) -> list[float]:
    """Bytes of one sample before every link, and after the last; infinite where samples cannot be told apart."""
    count = len(few)

    def size(value: Any) -> float:
        apart = isinstance(value, Tensor) and value.ndim and len(value) == count
        return value.numel() / max(1, count) * value.element_size() if apart else math.inf

    sizes, value = [size(few)], few
    for _, link in chain:
        with evaluating(link):
            value = _answer(link, value)
        sizes.append(size(value))
    return sizes


def _answer(link: nn.Module, value: Any) -> Any:
    with torch.no_grad():
        return link(value)


def _for(part: nn.Module, batch: Tensor, fast: bool) -> Tensor:
    """What may be given to a part: a copy, unless its first module writes nowhere else."""
    return batch if makes_new_memory(part, 0) else copied(batch, fast)


def _run(part: nn.Module, inputs: Tensor, step: int, fast: bool) -> Tensor:
    """The outputs for all inputs in one tensor, images in the memory format that `copied` gives them."""
    outputs = None
    for start in range(0, max(1, len(inputs)), step):
        output = _answer(part, _for(part, inputs[start : start + step], fast))
        if outputs is None:
            layout = torch.channels_last if fast and output.ndim == 4 else torch.contiguous_format
            # Filled in place: joining batches would need the memory twice.
            shape = (len(inputs), *output.shape[1:])
            outputs = torch.empty(shape, dtype=output.dtype, device=output.device, memory_format=layout)
        outputs[start : start + step] = output
    assert outputs is not None
    return outputs
