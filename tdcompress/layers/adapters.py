"""The adapters of the dense layers that are known: from a module to what `ConvSpec` says of it, and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tdcompress.layers.grouped import GroupedLinear
from tdcompress.layers.transposed import TransposedLinear

# From a `ConvSpec` to a layer; that class knows this file, so this file does not know it.
Build = Callable[..., nn.Module]


@dataclass(frozen=True)
class LayerKind:
    """One kind of dense layer: what it is called, what a `ConvSpec` says of it, and how one is built.

    Attributes:
        name: in messages and in files.
        layer: its class, or where that would be found, for one that is not to be imported: `"package.module.Class"`.
        arguments: from a layer to what its `ConvSpec` has that is not the default.
        build: from a `ConvSpec` to a fresh layer; `torch.device` says where.
        weight: the name of the parameter that is the weight.
        bias: the name of the parameter that is the bias.
        input_first: whether the weight is (in, out) and not (out, in).
        reads_features: whether it takes features, which have moments and can be fitted to; an embedding takes numbers
            of rows. The first stage of a layer that does not is of its own kind, the others are plain.
        refusal: why a layer of this kind cannot be replaced without changing what the model does; None if it can be.
    """

    name: str
    layer: type[nn.Module] | str
    arguments: Callable[[Any], Mapping[str, Any]]
    build: Build
    weight: str = "weight"
    bias: str = "bias"
    input_first: bool = False
    reads_features: bool = True
    refusal: Callable[[Any], str | None] = lambda layer: None

    def matches(self, kind: type) -> bool:
        """Whether `kind` is exactly this kind's class."""
        if isinstance(self.layer, str):
            return f"{kind.__module__}.{kind.__qualname__}" == self.layer
        return kind is self.layer


# --- those that are known ---------------------------------------------------------------------------------


def _convolution_arguments(conv: Any) -> dict[str, Any]:
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": tuple(conv.kernel_size),
        "stride": tuple(conv.stride),
        "padding": conv.padding if isinstance(conv.padding, str) else tuple(conv.padding),
        "dilation": tuple(conv.dilation),
        "groups": conv.groups,
        "padding_mode": conv.padding_mode,
        "has_bias": conv.bias is not None,
        "transposed": conv.transposed,
        "output_padding": tuple(conv.output_padding),
    }


def _linear_arguments(linear: Any) -> dict[str, Any]:
    return {
        "in_channels": linear.in_features,
        "out_channels": linear.out_features,
        "has_bias": linear.bias is not None,
    }


def _grouped_arguments(linear: GroupedLinear) -> dict[str, Any]:
    return {**_linear_arguments(linear), "groups": linear.groups}


def _conv1d_arguments(layer: Any) -> dict[str, Any]:
    inputs, outputs = layer.weight.shape  # older ones do not say how many inputs they have
    return {"in_channels": inputs, "out_channels": outputs, "has_bias": layer.bias is not None}


def _embedding_arguments(embedding: nn.Embedding) -> dict[str, Any]:
    said = {"padding_idx": embedding.padding_idx, "sparse": embedding.sparse or None}
    return {
        "in_channels": embedding.num_embeddings,
        "out_channels": embedding.embedding_dim,
        "has_bias": False,
        "options": tuple((name, value) for name, value in said.items() if value is not None),
    }


def _embedding_refusal(embedding: nn.Embedding) -> str | None:
    if embedding.max_norm is not None:
        return "its max_norm shortens single rows, which factors cannot; set it to None."
    if embedding.scale_grad_by_freq:
        return (
            "its scale_grad_by_freq divides the gradient of a row by how often it occurs, which a factor that all rows "
            "share cannot; set it to False."
        )
    return None


def _build_convolution(kind: type[Any]) -> Build:
    def build(spec: Any) -> nn.Module:
        spatial: dict[str, Any] = {"kernel_size": spec.kernel_size, "stride": spec.stride, "padding": spec.padding}
        spatial |= {"dilation": spec.dilation, "groups": spec.groups, "padding_mode": spec.padding_mode}
        if spec.transposed:
            spatial["output_padding"] = spec.output_padding
        conv: nn.Module = kind(spec.in_channels, spec.out_channels, bias=spec.has_bias, **spatial)
        return conv

    return build


def _build_linear(kind: type[Any]) -> Build:
    return lambda spec: kind(spec.in_channels, spec.out_channels, bias=spec.has_bias)


def _build_grouped(spec: Any) -> nn.Module:
    return GroupedLinear(spec.in_channels, spec.out_channels, spec.groups, bias=spec.has_bias)


def _build_conv1d(spec: Any) -> nn.Module:
    # Imported where there are such layers, so that it has been imported already.
    kind = importlib.import_module("transformers.pytorch_utils").Conv1D
    layer: nn.Module = kind(spec.out_channels, spec.in_channels)
    return layer


def _build_embedding(spec: Any) -> nn.Module:
    said: dict[str, Any] = dict(spec.options)
    return nn.Embedding(spec.in_channels, spec.out_channels, **said)


def _linear(kind: type[nn.Module], **how: Any) -> LayerKind:
    return LayerKind(kind.__name__, kind, _linear_arguments, _build_linear(kind), **how)


def _convolution(kind: type[nn.Module]) -> LayerKind:
    return LayerKind(kind.__name__, kind, _convolution_arguments, _build_convolution(kind))


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

KNOWN: tuple[LayerKind, ...] = (
    _linear(nn.Linear),
    *map(_convolution, _CONVOLUTIONS),
    LayerKind(
        "Embedding",
        nn.Embedding,
        _embedding_arguments,
        _build_embedding,
        input_first=True,
        reads_features=False,
        refusal=_embedding_refusal,
    ),
    LayerKind(
        "transformers.Conv1D",
        "transformers.pytorch_utils.Conv1D",
        _conv1d_arguments,
        _build_conv1d,
        input_first=True,
    ),
    _linear(TransposedLinear, input_first=True),
    LayerKind("GroupedLinear", GroupedLinear, _grouped_arguments, _build_grouped),
)
