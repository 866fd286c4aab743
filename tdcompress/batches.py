"""Running a model over batches of inputs, without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tdcompress.errors import CompressionError

Data = Iterable[Any] | Tensor


def batches(data: Data) -> Iterable[Any]:
    """The batches of `data`; a single tensor is one batch."""
    return [data] if isinstance(data, Tensor) else data


def again(data: Data) -> Iterable[Any]:
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


def forward(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch; what stands beside the input, labels for instance, is not looked at.

    Raises:
        CompressionError: the batch is none of what `approximation_errors` documents.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        return model(batch[0])
    raise CompressionError(
        f"a batch of data must be a tensor, a tuple or list that starts with one, or a dict of the model's "
        f"arguments; got {type(batch).__name__}."
    )


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
