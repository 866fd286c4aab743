"""Running a model over batches of inputs, without leaving a trace on it."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.errors import CompressionError

Data = Iterable[Any] | Tensor

_AT_A_TIME = 64  # samples of a single tensor: of a thousand images at once a forward takes up to three times as long
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_TESTED = 2  # samples by which the memory format is chosen
_CLOSE = 1e-3  # relative to the largest output, which rounding does not reach


def batches(data: Data) -> Iterable[Any]:
    """The batches of `data`; a single tensor of all samples is cut into parts that a core's caches hold.

    Raises:
        CompressionError: `data` is a dict, which is one batch.
    """
    if isinstance(data, Mapping):
        raise CompressionError("the data is a dict, which is one batch of the model's arguments; pass a list, [batch].")
    return list(pieces(data, _AT_A_TIME)) if isinstance(data, Tensor) else data


def repeatable(data: Data) -> Iterable[Any]:
    """Batches that can be gone through more than once.

    Raises:
        CompressionError: `data` is a generator or another iterator, which is spent after one pass.
    """
    if isinstance(data, Iterator):
        raise CompressionError(
            f"the data is read more than once, and a {type(data).__name__} is spent after one pass; "
            "pass a list, a DataLoader, or a tensor."
        )
    return batches(data)


def same_every_pass(inputs: Iterable[Any]) -> bool:
    """Whether every pass gives the same batches; a `DataLoader` may shuffle them, or draw augmentations."""
    return isinstance(_as_given(inputs), list | tuple)


def batches_in(inputs: Iterable[Any]) -> int:
    """How many batches a pass has; what does not say so is gone through."""
    given = _as_given(inputs)
    return len(given) if isinstance(given, Sized) else sum(1 for _ in given)


def _as_given(inputs: Iterable[Any]) -> Iterable[Any]:
    """The batches before `quickest` laid them out."""
    return inputs.batches if isinstance(inputs, _ChannelsLast) else inputs


def forward(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch; what stands beside the input, labels for instance, is not looked at.

    Raises:
        CompressionError: the batch is none of what `approximation_errors` documents, or not what the model takes.
    """
    return called(model, (), batch) if isinstance(batch, Mapping) else called(model, (input_of(batch),))


def input_of(batch: Any) -> Tensor:
    """The input in a batch that is no dict: the tensor itself, or the first one of a tuple or list.

    Raises:
        CompressionError: there is none.
    """
    got, first = type(batch).__name__, batch
    if isinstance(batch, Sequence) and batch:
        first = batch[0]
        got = f"{got} that starts with {type(first).__name__}"
    if isinstance(first, Tensor):
        return first
    raise CompressionError(
        "a batch of data must be a tensor, a tuple or list that starts with one, or a dict of the model's "
        f"arguments; got {got}."
    )


def called(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Any:
    """The model's output for these arguments.

    Raises:
        CompressionError: its forward takes others.
    """
    try:
        return model(*args, **kwargs or {})
    except TypeError as error:
        why = _misfit(model, args, kwargs or {})
        if why is None:
            raise
        raise CompressionError(
            f"the model's forward does not take what it is given: {why}. Give a dict of its arguments by name; of a "
            "batch of data that is a tuple only the first tensor is taken, for labels may stand beside it."
        ) from error


def _misfit(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """In which way arguments are none of a forward's; None if they are, or if it does not say what it takes."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{error}; its arguments are {', '.join(map(repr, signature.parameters))}"
    return None


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, every module's own mode after it."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def first_samples(batch: Any, most: int) -> tuple[Any, int]:
    """The first samples of a batch, and how many there are; all of a dict whose tensors do not agree on that."""
    if isinstance(batch, Tensor) and batch.ndim:
        return batch[:most], min(most, len(batch))
    if isinstance(batch, Mapping):
        counts = {len(one) for one in batch.values() if isinstance(one, Tensor) and one.ndim}
        if len(counts) != 1:
            return batch, max(counts, default=1)
        cut = {key: one[:most] if isinstance(one, Tensor) and one.ndim else one for key, one in batch.items()}
        return cut, min(most, *counts)
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        few, count = first_samples(batch[0], most)
        return [few], count
    return batch, 1


def samples_in(batch: Any) -> int:
    """How many samples a batch has, as `first_samples` counts them."""
    return first_samples(batch, sys.maxsize)[1]


def first_of(inputs: Iterable[Any], most: int) -> list[Any]:
    """The first batches, up to so many samples of all of them together; none after those is asked for."""
    few = []
    for batch in inputs:
        piece, count = first_samples(batch, most)
        few.append(piece)
        most -= count
        if most <= 0:
            break
    return few


def pieces(batch: Any, most: int) -> Iterator[Any]:
    """A batch in parts of at most so many samples; whole, if it is a dict whose tensors do not agree on how many."""
    if isinstance(batch, Tensor) and batch.ndim:
        yield from torch.split(batch, most)
    elif isinstance(batch, Mapping):
        tensors = {key: one for key, one in batch.items() if isinstance(one, Tensor) and one.ndim}
        if len({len(one) for one in tensors.values()}) != 1:
            yield batch
            return
        split = {key: torch.split(one, most) for key, one in tensors.items()}
        for number in range(len(next(iter(split.values())))):
            yield {**batch, **{key: parts[number] for key, parts in split.items()}}
    elif isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        yield from ([part] for part in pieces(batch[0], most))
    else:
        yield batch


def logits_of(result: Any) -> Tensor | None:
    """The tensor that is called `logits` in what a model returns, by attribute or key; None if there is none."""
    named = getattr(result, "logits", None)
    if not isinstance(named, Tensor) and isinstance(result, Mapping):
        named = result.get("logits")
    return named if isinstance(named, Tensor) else None


def output_of(result: Any) -> Tensor:
    """The tensor in what a model returns: itself, `logits`, or the first entry.

    Raises:
        CompressionError: there is none.
    """
    if isinstance(result, Tensor):
        return result
    logits = logits_of(result)
    if logits is not None:
        return logits
    values = list(result.values()) if isinstance(result, Mapping) else result
    if isinstance(values, Sequence) and values and isinstance(values[0], Tensor):
        return values[0]
    raise CompressionError(f"the model's output must be a tensor or start with one, got a {type(result).__name__}.")


@dataclass(frozen=True)
class _ChannelsLast(Iterable[Any]):
    """Batches whose images lie channels last.

    Attributes:
        batches: as they were given.
    """

    batches: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return map(channels_last, self.batches)


def quickest(inputs: Iterable[Any], *models: nn.Module) -> Iterable[Any]:
    """The batches in the memory format in which these models run quicker, for who runs them many times over.

    On a CPU PyTorch's convolutions take images channels last in a half to four fifths of the time. Every convolution
    hands the format on, so that it is enough to have the input so. Where a model does not take it (a `view` will not)
    or says something else then, and for anything but images on a CPU, batches stay as they are.

    Args:
        inputs: batches that can be gone through more than once.
        models: in evaluation mode.
    """
    if isinstance(inputs, _ChannelsLast):
        return inputs
    return _ChannelsLast(inputs) if quicker_channels_last(next(iter(inputs), None), *models) else inputs


def quicker_channels_last(batch: Any, *models: nn.Module) -> bool:
    """Whether these models run quicker on such batches channels last, and say the same; see `quickest`."""
    images = batch[0] if isinstance(batch, Sequence) and batch else batch
    if not isinstance(images, Tensor) or images.ndim not in _FORMATS:
        return False
    if images.device.type != "cpu" or not images.is_floating_point():
        return False
    few, _ = first_samples(batch, _TESTED)
    try:
        with torch.no_grad():
            return all(
                _close(output_of(forward(one, few)), output_of(forward(one, channels_last(few)))) for one in models
            )
    except Exception:  # whatever the model's own code raises; if it does so in any format, the user will see it
        return False


def channels_last(batch: Any) -> Any:
    """A batch with its images channels last; what is no images stays as it is."""
    if isinstance(batch, Tensor):
        return batch.contiguous(memory_format=_FORMATS[batch.ndim]) if batch.ndim in _FORMATS else batch
    return [channels_last(batch[0]), *batch[1:]] if isinstance(batch, Sequence) else batch


def channels_last_copy(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a model whose weights lie as such images do channels last, so that no forward has to turn them."""
    return copy.deepcopy(model).to(memory_format=_FORMATS[images.ndim])  # type: ignore[call-overload]


def _close(first: Tensor, second: Tensor) -> bool:
    scale = float(first.abs().max()) if first.numel() else 0.0
    return first.shape == second.shape and math.isfinite(scale) and bool((first - second).abs().max() <= _CLOSE * scale)
