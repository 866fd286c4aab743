"""What a trial's result depends on, as a hash: the same for the same bits, on any machine and in any year."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


def data_digest(data: Any) -> str | None:
    """A hash of a tensor, or of a list, tuple or dict of what has one; None for anything else, such as a loader."""
    if isinstance(data, Tensor):
        return _tensors_digest([("", data)])
    if isinstance(data, Mapping):
        data = [part for name in sorted(data) for part in (name, data[name])]
    if isinstance(data, str | int | float | None):
        return digest(data)
    if not isinstance(data, list | tuple):
        return None
    parts = [data_digest(part) for part in data]
    return None if None in parts else digest(parts)


def solver_fields(solver: Any) -> Any:
    """What a solver was told, as plain values.

    Raises:
        CompressionError: it is neither None, nor a name, nor a dataclass of plain values.

    >>> import tdcompress as td
    >>> solver_fields(td.TuckerOptions(max_iter=7))
    {'type': 'TuckerOptions', 'max_iter': 7, 'tol': 1e-05, 'candidates': 3}
    """
    if solver is None or isinstance(solver, str):
        return solver
    if dataclasses.is_dataclass(solver) and not isinstance(solver, type):
        fields = {"type": type(solver).__name__, **dataclasses.asdict(solver)}
        try:
            digest(fields)
        except (TypeError, ValueError) as problem:
            raise CompressionError(f"solver {solver!r} cannot be told from others: {problem}.") from None
        return fields
    raise CompressionError(
        f"a study tells solvers apart by their fields, and {solver!r} has none; make it a frozen dataclass."
    )


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
