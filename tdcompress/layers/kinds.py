"""The kinds of dense layers, by name and by module, and how a user adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tdcompress.errors import CompressionError
from tdcompress.layers.adapters import KNOWN, Build, LayerKind

Convolution = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
)


KINDS: dict[str, LayerKind] = {kind.name: kind for kind in KNOWN}

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
            f"its {', '.join(module.parametrizations)} is parametrized; remove that first, or use "  # type: ignore[arg-type]
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
