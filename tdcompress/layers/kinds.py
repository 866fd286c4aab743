"""The kinds of dense layers: for each an adapter from the module to what `ConvSpec` says of it, and back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tdcompress.errors import CompressionError
from tdcompress.layers.grouped import GroupedLinear
from tdcompress.layers.transposed import TransposedLinear

# From a `ConvSpec` to a layer; that class knows this file, so this file does not know it.
Build = Callable[..., nn.Module]

Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
)


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

KINDS: dict[str, LayerKind] = {
    kind.name: kind
    for kind in (
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
}

_ATTENTION = (
    "computes with its weights itself and calls no layer, so that factors would save nothing; use an attention that "
    "is made of nn.Linear layers, or leave this one out."
)
# What looks like a layer that can be factorized, and why it is not.
_FUSED: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: f"MultiheadAttention {_ATTENTION}",
    NonDynamicallyQuantizableLinear: f"it is the projection of an nn.MultiheadAttention, which {_ATTENTION}",
}


# --- by module --------------------------------------------------------------------------------------------


def default_kind(axes: int, transposed: bool, groups: int = 1) -> str:
    """The name of PyTorch's own layer with so many spatial axes; linear layers with groups are ours.

    >>> default_kind(0, False), default_kind(2, True), default_kind(0, False, groups=4)
    ('Linear', 'ConvTranspose2d', 'GroupedLinear')
    """
    if axes:
        return f"Conv{'Transpose' * transposed}{axes}d"
    return "Linear" if groups == 1 else "GroupedLinear"


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind that `module` is or derives from; None if there is none."""
    for parent in type(module).__mro__:
        for kind in KINDS.values():
            if kind.matches(parent):
                return kind
    return None


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a dense layer of any kind, as it is there, or of a factorized one."""
    kind = kind_of(module)
    weight: Tensor = getattr(module, "weight" if kind is None else kind.weight)
    return weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a dense layer of any kind, or of a factorized one; None if it has none."""
    kind = kind_of(module)
    return getattr(module, "bias" if kind is None else kind.bias, None)


def reads_features(module: nn.Module) -> bool:
    """Whether a layer takes features, which have moments, and not numbers of rows as an embedding does."""
    kind = kind_of(module)
    return kind is None or kind.reads_features


def refusal_of(module: nn.Module) -> str | None:
    """Why a layer cannot be replaced, whatever a user allows; None if it can be, or need not be a layer of a kind."""
    fused = next((_FUSED[parent] for parent in type(module).__mro__ if parent in _FUSED), None)
    if fused is not None:
        return fused
    kind = kind_of(module)
    if kind is None:
        return f"{type(module).__name__} cannot be factorized; {', '.join(KINDS)} can."
    return kind.refusal(module)


def as_dense(module: nn.Module) -> Any:
    """`module`, if it can be replaced without changing what the model does.

    Raises:
        CompressionError: it is not exactly of one of the kinds, or carries hooks or parametrizations.
    """
    why = refusal_of(module) or _more_than_plain(module)
    if why is not None:
        raise CompressionError(why)
    return module


def _more_than_plain(module: nn.Module) -> str | None:
    kind = kind_of(module)
    assert kind is not None
    if nn.utils.parametrize.is_parametrized(module):
        return (
            f"its {', '.join(module.parametrizations)} is parametrized; remove that first, or use "  # type: ignore
            "decompose(…, parametrized='bake')."
        )
    if not kind.matches(type(module)):
        return (
            f"{type(module).__name__} is a subclass of {kind.name} whose forward may differ; use a plain {kind.name} "
            "if it does not, or decompose(…, allow_subclasses=True)."
        )
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, table) for table in tables):
        return (
            "it carries forward or backward hooks (weight_norm, spectral_norm and pruning are such), which would be "
            "lost; remove them first, or use decompose(…, hooks='keep', parametrized='bake')."
        )
    return None


# --- a user's own -----------------------------------------------------------------------------------------


def register_layer_kind(
    layer: type[nn.Module],
    *,
    arguments: Callable[[Any], Mapping[str, Any]],
    build: Build,
    name: str | None = None,
    weight: str = "weight",
    bias: str = "bias",
    input_first: bool = False,
    reads_features: bool = True,
    replace: bool = False,
) -> LayerKind:
    """Make a class of dense layers known: all that works on `nn.Linear` or a convolution then works on it, too.

    Its forward has to be what the PyTorch layer with the same `ConvSpec` does, for only plain layers stand in the stack
    that it becomes. `restore` builds it anew. Call this where the class is defined, so that workers know it, too.

    Args:
        layer: the class. Subclasses of it are not of this kind.
        arguments: from a layer to the arguments of its `ConvSpec` as a dict: `in_channels` and `out_channels`,
            `has_bias` (True by default), for a convolution also `kernel_size`, `stride`, `padding`, `dilation`; what
            `build` needs besides goes into `options`, as pairs of names and numbers or words.
        build: from a `ConvSpec` to a layer, whose weights do not matter; on the device of the `torch.device` around it.
        name: in messages and files; the class's name by default.
        weight: the name of the parameter that is the weight, (out, in / groups, *kernel_size).
        bias: the name of the parameter that is the bias.
        input_first: whether the weight is (in, out / groups, *kernel_size) instead.
        reads_features: False for a layer that takes numbers of rows, as an embedding does.
        replace: whether a kind of that name may be overwritten.

    Raises:
        CompressionError: the name is taken, or `layer` is no class of modules.

    >>> import torch
    >>> import tdcompress as td
    >>> class Dense(nn.Module):
    ...     def __init__(self, n_in, n_out):
    ...         super().__init__()
    ...         self.n_in, self.n_out = n_in, n_out
    ...         self.kernel = nn.Parameter(torch.randn(n_in, n_out))
    ...     def forward(self, x):
    ...         return x @ self.kernel
    >>> kind = td.register_layer_kind(
    ...     Dense,
    ...     arguments=lambda one: {"in_channels": one.n_in, "out_channels": one.n_out, "has_bias": False},
    ...     build=lambda spec: Dense(spec.in_channels, spec.out_channels),
    ...     weight="kernel",
    ...     input_first=True,
    ... )
    >>> small = td.decompose(nn.Sequential(Dense(16, 12)), "0", "svd", rank=3)
    >>> [tuple(stage.weight.shape) for stage in small[0]], type(td.restore(small)[0]).__name__
    ([(3, 16), (12, 3)], 'Dense')
    >>> _ = KINDS.pop(kind.name)
    """
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise CompressionError(f"a kind of layer is a class of nn.Module, got {layer!r}.")
    name = name or layer.__name__
    if name in KINDS and not replace:
        raise CompressionError(f"the kind of layer {name!r} exists; pass another name=, or replace=True to overwrite.")
    KINDS[name] = LayerKind(name, layer, arguments, build, weight, bias, input_first, reads_features)
    return KINDS[name]


def cpu_sizes(layers: Mapping[str, nn.Module]) -> dict[str, int] | None:
    """The elements of the layers' weights by name; None if one is not in the CPU's memory."""
    weights = {name: weight_of(layer) for name, layer in layers.items()}
    on_cpu = all(weight.device.type == "cpu" for weight in weights.values())
    return {name: weight.numel() for name, weight in weights.items()} if on_cpu else None
