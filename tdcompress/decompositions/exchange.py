"""Objects of tensorly and tensorly-torch to forms, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions.bridge import tensorly_on_torch
from tdcompress.decompositions.chain_forms import TRForm, TTForm, TTMForm
from tdcompress.decompositions.forms import CPForm, Form, TuckerForm
from tdcompress.errors import CompressionError


def form_of(decomposition: Any) -> Form:
    """The form of a `CPTensor`, `TuckerTensor`, `TTTensor`, `TRTensor` or `TTMatrix`, of tensorly or of tensorly-torch.

    Args:
        decomposition: one of those, with factors of PyTorch or of what NumPy takes for arrays; or the plain tuples that
            tensorly takes in their place, (weights or None, factors), (core, factors) and the cores, those of a
            `TTMatrix` with four axes, and those of a `TRTensor` with ends of more than one row. A `TuckerTensor` may
            have fewer factors than its core has modes, as tensorly's `partial_tucker` gives it: the last modes are
            whole then.

    Raises:
        CompressionError: it is none of these, it is complex, or its parts do not fit each other.

    >>> form_of((None, [np.ones((4, 2)), np.ones((3, 2))]))
    CPForm(weights=tensor([1., 1.], dtype=torch.float64), ...
    """
    if hasattr(decomposition, "core"):
        return _tucker(decomposition.core, decomposition.factors)
    if hasattr(decomposition, "weights"):
        return _cp(decomposition.weights, decomposition.factors)
    parts = list(getattr(decomposition, "factors", decomposition if isinstance(decomposition, list | tuple) else ()))
    if not parts:
        kind = type(decomposition).__name__
        raise CompressionError(
            f"a CPTensor, TuckerTensor, TTTensor, TRTensor or TTMatrix is needed, or what they are made of; got {kind}."
        )
    if len(parts) == 2 and isinstance(parts[1], list | tuple):
        first, factors = parts
        return _cp(first, factors) if first is None or np.ndim(first) == 1 else _tucker(first, factors)
    cores = _tensors(parts)
    if all(core.ndim == 4 for core in cores):
        return TTMForm(cores)
    closed = cores[0].shape[0] == cores[-1].shape[-1] > 1
    return TRForm(cores) if closed or type(decomposition).__name__ == TRForm.name else TTForm(cores)


def to_tensorly(form: Form) -> Any:
    """An object of tensorly's class of that name, with the very tensors of the form."""
    with tensorly_on_torch() as tensorly:
        modules = tensorly.cp_tensor, tensorly.tucker_tensor, tensorly.tt_tensor, tensorly.tr_tensor, tensorly.tt_matrix
        kind = next(getattr(module, form.name) for module in modules if hasattr(module, form.name))
        return kind(form.arguments if len(form.arguments) > 1 else form.arguments[0])


def _cp(weights: Any, factors: Any) -> CPForm:
    # A factor of one term may come as a vector.
    columns = tuple(factor[:, None] if factor.ndim == 1 else factor for factor in _tensors(factors))
    if not columns:
        raise CompressionError("a CPTensor has a factor with 2 modes for each of its modes, got none.")
    return CPForm(columns[0].new_ones(columns[0].shape[-1]) if weights is None else _tensors([weights])[0], columns)


def _tucker(core: Any, factors: Any) -> TuckerForm:
    return TuckerForm.partial(_tensors([core])[0], _tensors(factors))


def _tensors(values: Any) -> tuple[Tensor, ...]:
    # tensorly-torch's list of factors can be indexed, and is no sequence otherwise.
    return tuple(value if isinstance(value, Tensor) else _from_numpy(np.array(value)) for value in values)


def _from_numpy(array: Any) -> Tensor:
    if array.dtype.kind not in "fc":
        raise CompressionError(f"arrays of floating-point numbers are needed here, got one of {array.dtype}.")
    return torch.from_numpy(array)
