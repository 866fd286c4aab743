"""A decomposition of this library to a FactorizedTensor of tensorly-torch, and back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tdcompress.decompositions import (
    CPDecomposition,
    Reshape,
    Solution,
    TTDecomposition,
    TTMDecomposition,
    TuckerDecomposition,
)
from tdcompress.decompositions.bridge import tensorly_on_torch, tensorly_torch
from tdcompress.decompositions.chain_forms import TTMForm
from tdcompress.decompositions.exchange import form_of
from tdcompress.decompositions.form_parts import identity
from tdcompress.decompositions.forms import CPForm, TuckerForm
from tdcompress.errors import CompressionError

Decomposition = CPDecomposition | TuckerDecomposition | TTDecomposition | TTMDecomposition


def from_factorized_tensor(tensor: Any) -> Decomposition:
    """The decomposition that a tensor of tensorly-torch is.

    Exact up to rounding: nothing is solved for. The columns of a CP come to unit length, and the factors of a Tucker to
    orthonormal columns, as the solvers here give them; lengths and signs go into the weights and the core.

    Args:
        tensor: a `CPTensor`, `TuckerTensor` or `TTTensor` of any shape, or a `BlockTT` of a matrix; real. It is left
            alone.

    Returns:
        Own copies without gradients, in the tensor's dtype. The relative error of its `solution` is NaN, for it is not
        known how well it approximates what.

    Raises:
        CompressionError: it is of another class, complex ones and those of matrices with reshaped sides among them, or
            a `BlockTT` of more than a matrix.

    >>> import tensorly, tltorch
    >>> tensorly.set_backend("pytorch")
    >>> theirs = tltorch.FactorizedTensor.from_tensor(torch.rand(6, 5, 4), rank=3, factorization="cp")
    >>> ours = from_factorized_tensor(theirs)
    >>> type(ours).__name__, ours.rank, torch.allclose(ours.to_dense(), theirs.to_tensor(), atol=1e-5)
    ('CPDecomposition', 3, True)
    """
    theirs = tensorly_torch()
    kinds = (theirs.CPTensor, theirs.TuckerTensor, theirs.TTTensor, theirs.BlockTT)
    if type(tensor) not in kinds:
        name = type(tensor).__name__
        raise CompressionError(
            f"{name} has no counterpart{_hint(name)}; {', '.join(kind.__name__ for kind in kinds)} have."
        )
    with torch.no_grad():
        form, unknown = form_of(tensor), Solution(math.nan)
        if isinstance(form, CPForm):
            return _unit_columns(form, unknown)
        if isinstance(form, TuckerForm):
            bases, triangles = zip(*map(torch.linalg.qr, form.factors), strict=True)
            return TuckerDecomposition(TuckerForm(form.core, triangles).core_along(()), dict(enumerate(bases)), unknown)
        cores = tuple(core.clone() for core in form.cores)
        if isinstance(form, TTMForm):
            return TTMDecomposition(cores, Reshape(form.rows, form.columns), unknown)
        return TTDecomposition(cores, unknown)


def to_factorized_tensor(decomposition: Decomposition) -> Any:
    """The tensor of tensorly-torch that a decomposition is: the way back.

    Exact. Modes that a Tucker leaves whole get identities. The factors are parameters of their own. Computing with it
    takes tensorly's PyTorch backend, as for `to_tltorch`.

    Args:
        decomposition: of `cp`, `tucker`, `tensor_train` or `ttm`.

    Returns:
        A `CPTensor`, `TuckerTensor`, `TTTensor` or `BlockTT`.

    Raises:
        CompressionError: it is of another kind, or of a matrix whose rows or columns are strided.

    >>> import tensorly
    >>> from tdcompress.decompositions import tucker
    >>> tensorly.set_backend("pytorch")
    >>> to_factorized_tensor(tucker(torch.rand(6, 5, 3), (4, 3), modes=(0, 1)))
    TuckerTensor(shape=(6, 5, 3), rank=(4, 3, 3))
    """
    theirs = tensorly_torch()  # before the block, at whose end the backend would be what its import makes it
    with tensorly_on_torch():
        if isinstance(decomposition, CPDecomposition):
            return theirs.CPTensor(_own(decomposition.weights), list(map(_own, decomposition.factors)))
        if isinstance(decomposition, TuckerDecomposition):
            core, factors = decomposition.core, decomposition.factors
            whole = (identity(size, core) for size in core.shape)
            return theirs.TuckerTensor(_own(core), [_own(factors.get(mode, one)) for mode, one in enumerate(whole)])
        if isinstance(decomposition, TTDecomposition):
            return theirs.TTTensor(list(map(_own, decomposition.cores)))
        if isinstance(decomposition, TTMDecomposition):
            form, shape = TTMForm(decomposition.cores), decomposition.reshape
            if shape.strided_rows or shape.strided_columns:
                raise CompressionError(
                    "the first factor of its rows or columns counts fastest, and that of a BlockTT slowest."
                )
            ranks = (*(len(core) for core in form.cores), 1)
            return theirs.BlockTT(list(map(_own, form.cores)), (form.rows, form.columns), rank=ranks)
    raise CompressionError(f"tensorly-torch has no class for a {type(decomposition).__name__}.")


def _unit_columns(form: CPForm, solution: Solution) -> CPDecomposition:
    lengths = [factor.norm(dim=0) for factor in form.factors]
    first, *others = (factor / n.where(n > 0, 1) for factor, n in zip(form.factors, lengths, strict=True))
    signs = torch.where(form.weights < 0, -1, 1).to(form.weights)
    return CPDecomposition(form.weights.abs() * torch.stack(lengths).prod(0), (first * signs, *others), solution)


def _own(values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone())


def _hint(name: str) -> str:
    if name.startswith("Complex"):
        return ", for decompositions here are real"
    return " but as the weight of a layer, see from_tltorch" if name.endswith("Tensorized") else ""
