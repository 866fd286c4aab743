"""What a trial's result depends on, as a hash: the same for the same bits, on any machine and in any year."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
)

from tdcompress.decompositions.options import Options, TensorlyOptions
from tdcompress.errors import CompressionError


def digest(value: Any) -> str:
    """A hash of plain values: numbers, strings, None, lists, tuples, and dicts of them in any order.

    >>> digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def model_digest(model: nn.Module) -> str:
    """A hash of a model's modules and of every bit of its parameters and buffers; devices do not count.

    >>> model = nn.Sequential(nn.Conv2d(1, 1, 1))
    >>> before = model_digest(model)
    >>> _ = nn.init.constant_(model[0].bias, 0.5)
    >>> before == model_digest(model)
    False
    """
    modules = [(name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()]
    # Without the duplicates that state_dict() leaves out, tied weights would count once or twice by chance.
    return digest([modules, _tensors_digest(model.state_dict().items())])


def data_digest(data: Any, *, loaders: bool = False) -> str | None:
    """A hash of a tensor, or of a list, tuple or dict of what has one; None for anything else.

    Args:
        data: the inputs of feature metrics.
        loaders: whether a `DataLoader` has one as well: that of the samples that it gives, where they come from
            tensors or from lists of what has a hash, all of them or a part that is the same each time. In which order
            and how many at a time does not count, since errors are means over samples.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> dataset = TensorDataset(torch.arange(6.0))
    >>> one, other = DataLoader(dataset, batch_size=2, shuffle=True), DataLoader(dataset, batch_size=3)
    >>> data_digest(one, loaders=True) == data_digest(other, loaders=True), data_digest(one)
    (True, None)
    """
    if isinstance(data, Tensor):
        return _tensors_digest([("", data)])
    if loaders and type(data) is DataLoader:
        return _loader_digest(data)
    if isinstance(data, Mapping):
        data = [part for name in sorted(data) for part in (name, data[name])]
    if isinstance(data, str | int | float | None):
        return digest(data)
    if not isinstance(data, list | tuple):
        return None
    parts = [data_digest(part) for part in data]
    return None if None in parts else digest(parts)


def _loader_digest(loader: DataLoader[Any]) -> str | None:
    """Of the samples, if they are the same in every pass and nothing but stacked into batches."""
    batches, sampler = loader.batch_sampler, loader.sampler
    samples = _dataset_digest(loader.dataset)
    usual = loader.collate_fn in (default_collate, default_convert)
    if samples is None or not usual or type(batches) not in (BatchSampler, type(None)):
        return None
    total = len(loader.dataset)  # type: ignore[arg-type]
    left_out = total % loader.batch_size if loader.drop_last and loader.batch_size else 0
    if type(sampler) is SequentialSampler:
        return digest(["loader", samples, total - left_out])
    everything = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == total
    return digest(["loader", samples, total]) if everything and not left_out else None


def _dataset_digest(dataset: Any) -> str | None:
    if type(dataset) is TensorDataset:
        return data_digest(dataset.tensors)
    if type(dataset) is Subset:
        parts = [_dataset_digest(dataset.dataset), data_digest([int(index) for index in dataset.indices])]
        return None if None in parts else digest(["subset", *parts])
    if type(dataset) is ConcatDataset:
        parts = [_dataset_digest(part) for part in dataset.datasets]
        return None if None in parts else digest(["joined", *parts])
    return data_digest(dataset) if isinstance(dataset, Tensor | list | tuple) else None


def options_fields(options: Options) -> Any:
    """What a method was told, as plain values: None for its defaults, `"tensorly"` for what that word stands for.

    Options that were added after the first stores count only where they differ from what was then the only way.

    Raises:
        CompressionError: a field is no plain value.

    >>> import tdcompress as td
    >>> options_fields(td.TuckerOptions(max_iter=7))
    {'type': 'TuckerOptions', 'max_iter': 7, 'tol': 1e-05, 'candidates': 3}
    >>> options_fields(td.TuckerOptions()), options_fields(td.TuckerOptions.tensorly())
    (None, 'tensorly')
    """
    kind = type(options)
    if options == kind():
        return None
    fields: dict[str, Any] = {"type": kind.__name__, **dataclasses.asdict(options)}
    if isinstance(options, TensorlyOptions):
        if options == kind.tensorly():
            return "tensorly"
        if options.backend == "own":
            del fields["backend"]
    try:
        digest(fields)
    except (TypeError, ValueError) as problem:
        raise CompressionError(f"options {options!r} cannot be told from others: {problem}.") from None
    return fields


def _tensors_digest(tensors: Iterable[tuple[str, Any]]) -> str:
    total = hashlib.sha256()
    for name, tensor in tensors:
        if not isinstance(tensor, Tensor):  # what a module's get_extra_state gives
            total.update(repr((name, tensor)).encode())
            continue
        total.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        total.update(_bytes(tensor).numpy().data)
    return total.hexdigest()[:32]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def metric_fields(metrics: Sequence[Any]) -> list[list[Any]]:
    """Names and versions, in no order."""
    return sorted([metric.name, metric.version] for metric in metrics)
