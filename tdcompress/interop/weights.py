"""The weight of a layer of tensorly-torch as a form; that of a matrix with reshaped sides is a chain of cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tdcompress.decompositions.chain_forms import TTMForm
from tdcompress.decompositions.exchange import form_of
from tdcompress.decompositions.form_parts import identity
from tdcompress.decompositions.forms import CPForm, Form, TuckerForm
from tdcompress.errors import CompressionError

_CORES = (2, 3, 4)


def form_of_weight(weight: Any) -> Form:
    """The factors of a weight that is no more than the layer's matrix or kernel.

    A matrix whose sides are reshaped alike is a `TTMForm` of as many cores: a `BlockTT` as it is; a CP with a term in
    every bond, so its cores are diagonal between the bonds; a Tucker of two factors a side with all pairs of its ranks.

    Raises:
        CompressionError: no layer here is that matrix.
    """
    shape = tuple((side,) if isinstance(side, int) else tuple(side) for side in getattr(weight, "tensorized_shape", ()))
    if weight.name != "BlockTT" and all(len(side) == 1 for side in shape):
        return form_of(weight)
    form = _chain(form_of(weight), shape) if len(shape) == 2 and len(shape[0]) == len(shape[1]) else None
    if form is None or len(form.cores) not in _CORES:
        raise CompressionError(
            f"its weight is a {weight.name} of a matrix whose sides are reshaped, {shape}, and layers here have two to "
            "four factors of either side, as many of the one as of the other, and two where it is a Tucker; put "
            "layer.weight.to_matrix() into an nn.Linear and decompose that."
        )
    return form


def _chain(form: Form, shape: Sequence[Sequence[int]]) -> TTMForm | None:
    """A form of (*rows, *columns) as a chain of cores; None if it is none."""
    count = len(shape[0])
    if isinstance(form, TTMForm):
        return form
    if isinstance(form, CPForm):
        return TTMForm(_diagonal(form, count))
    if not isinstance(form, TuckerForm) or count != 2:
        return None
    first, second = (torch.einsum("op,iq->oipq", *form.factors[core::2]).flatten(2) for core in (0, 1))
    core = form.core.transpose(1, 2).flatten(2).flatten(0, 1)  # (pairs of the first core, pairs of the second)
    return TTMForm((first[None], torch.einsum("rs,ois->roi", core, second)[..., None]))


def _diagonal(form: CPForm, count: int) -> tuple[Tensor, ...]:
    """Cores with the terms of a CP in every bond, each going on to itself alone."""
    factors = form.without_weights()
    products = [factors[core][:, None] * factors[core + count][None] for core in range(count)]  # (rows, columns, terms)
    first, *inner, last = products
    between = [torch.einsum("oir,rs->rois", one, identity(first.shape[-1], first)) for one in inner]
    return first[None], *between, last.movedim(-1, 0)[..., None]
