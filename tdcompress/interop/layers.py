"""One layer of tensorly-torch to one of ours, and back."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tdcompress.decompositions.bridge import tensorly_torch
from tdcompress.decompositions.chain_forms import TRForm, TTForm, TTMForm
from tdcompress.decompositions.forms import Form
from tdcompress.errors import CompressionError
from tdcompress.interop.weights import form_of_weight
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.methods import METHODS

Implementation = Literal["factorized", "reconstructed", "mobilenet"]


def is_theirs(module: nn.Module) -> bool:
    """Whether it is, or derives from, a layer of tensorly-torch; which is not imported to find out."""
    return any(kind.__module__.startswith("tltorch.factorized_layers.") for kind in type(module).__mro__)


# --- theirs to ours ---------------------------------------------------------------------------------------


def from_theirs(layer: Any) -> nn.Module:
    """What `from_tltorch` makes of one layer.

    Raises:
        CompressionError: it has no counterpart.
    """
    theirs = tensorly_torch()
    if type(layer) not in (theirs.FactorizedConv, theirs.FactorizedLinear):
        raise CompressionError(f"{type(layer).__name__} has no counterpart; FactorizedConv and FactorizedLinear have.")
    if layer.n_layers != 1:
        raise CompressionError(f"its factorization is that of n_layers={layer.n_layers} at once; ours are of one each.")
    spec = _read_linear(layer) if type(layer) is theirs.FactorizedLinear else _read_convolution(layer)
    new: Any
    if layer.weight.name == "Dense":
        new = last = spec.build(device="meta")
        new.weight = _own(layer.weight.tensor.reshape(spec.kernel_shape))
    else:
        form = form_of_weight(layer.weight)
        kind = next(kind for kind in METHODS.values() if type(form) in kind.forms(spec))
        new = kind.of_forms([form], spec)
        last = new[-1]
    if layer.bias is not None:
        last.bias = _own(layer.bias)
    return new


def _read_linear(layer: Any) -> ConvSpec:
    return ConvSpec(int(layer.in_features), int(layer.out_features), has_bias=layer.bias is not None)


def _read_convolution(layer: Any) -> ConvSpec:
    shape = tuple(layer.weight.shape)
    out, inner, *size = (shape[-1], *shape[:-1]) if layer.weight.name == "TT" else shape
    stride, padding, dilation = (tuple(values.tolist()) for values in (layer.stride, layer.padding, layer.dilation))
    return ConvSpec(inner, out, tuple(size), stride, padding, dilation, has_bias=layer.bias is not None)


def _own(values: Tensor) -> nn.Parameter:
    """The same values as a parameter of its own, trained if they are."""
    return nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)


# --- ours to theirs ---------------------------------------------------------------------------------------


def to_theirs(layer: FactorizedConv, implementation: Implementation) -> nn.Module:
    """What `to_tltorch` makes of one layer; inside of `tensorly_on_torch`.

    Raises:
        CompressionError: theirs cannot do what it does.
    """
    theirs, spec = tensorly_torch(), layer.spec
    _check_kind(spec)
    padding = _even_padding(spec)
    with torch.enable_grad():  # so that factors say that they are trained
        (form,) = layer.group_forms()
    if isinstance(form, TRForm):
        raise CompressionError("tensorly-torch has no tensor ring; `layer.to_tensorly()` gives tensorly's.")
    parts = [_own(part) if isinstance(part, Tensor) else list(map(_own, part)) for part in form.arguments]
    if spec.is_matrix:
        if isinstance(form, TTMForm):
            _check_grid(layer)
            sides = (form.rows, form.columns)
            weight = theirs.BlockTT(*parts, sides, rank=(*(len(core) for core in form.cores), 1))
        else:
            sides = ((spec.out_channels,), (spec.in_channels,))
            weight = theirs.CPTensorized(*parts, sides)
        how = "factorized" if implementation == "mobilenet" else implementation
        new = theirs.FactorizedLinear(
            sides[1], sides[0], bias=spec.has_bias, factorization=weight, rank=weight.rank, implementation=how
        )
    else:
        _check_axes(layer, form)
        weight = getattr(theirs, form.name)(*parts)
        new = theirs.FactorizedConv.from_factorization(
            weight, implementation, stride=spec.stride, padding=padding, dilation=spec.dilation
        )
        # Their own constructors have the name here; a second time the weight would stand in the state_dict twice.
        del new.factorization
        new.factorization = weight.name
    new.bias = None if layer.bias is None else _own(layer.bias)
    return new


def _check_kind(spec: ConvSpec) -> None:
    """Refuse what theirs has no layer for.

    Raises:
        CompressionError: it is so.
    """
    if not spec.adapter.reads_features:
        raise CompressionError(f"it stands for a {spec.kind}, for which tensorly-torch has no layer of these factors.")
    if spec.transposed:
        raise CompressionError("tensorly-torch has no transposed convolutions.")
    if spec.groups > 1:
        raise CompressionError(f"it has {spec.groups} groups, and tensorly-torch's convolutions have none.")


def _even_padding(spec: ConvSpec) -> tuple[int, ...]:
    """The zeros on either side along every axis, which is all that theirs can add.

    Raises:
        CompressionError: it adds something else.
    """
    padding = spec.padding
    if isinstance(padding, str):
        steps = zip(spec.dilation, spec.kernel_size, strict=True)
        added = [step * (size - 1) if padding == "same" else 0 for step, size in steps]
        if any(total % 2 for total in added):
            raise CompressionError("its padding='same' adds more on one side, tensorly-torch's cannot; pad before it.")
        padding = tuple(total // 2 for total in added)
    if spec.padding_mode != "zeros" and any(padding):
        raise CompressionError(
            f"its padding_mode is {spec.padding_mode!r}, and tensorly-torch pads with zeros; pad before it."
        )
    return padding


def _check_grid(layer: FactorizedConv) -> None:
    """Refuse what theirs would take for another matrix.

    Raises:
        CompressionError: rows or columns are strided.
    """
    if any(layer.axes[2]):
        raise CompressionError(
            "the first factor of its rows or columns counts fastest, and tensorly-torch's slowest; decompose by "
            "reshape='balanced', or by factors that are given."
        )


def _check_axes(layer: FactorizedConv, form: Form) -> None:
    """Refuse what theirs would take for another kernel, or not at all.

    Raises:
        CompressionError: the spatial axes are not one by one and in their own order.
    """
    shape = (form.shape[-1], *form.shape[:-1]) if isinstance(form, TTForm) else form.shape
    order = [axis for group in layer.axes for axis in group]
    if shape != layer.spec.kernel_shape or order != sorted(order):
        raise CompressionError(
            f"its stages have the spatial axes as {layer.axes}, and tensorly-torch's one by one, in order; "
            "split_spatial() does so for a CP, TTOptions(orders='given') or axes= for a tensor train."
        )
