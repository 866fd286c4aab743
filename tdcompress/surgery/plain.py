"""From whatever a user's layer is to the plain layer that can be factorized: baked, or refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec
from tdcompress.layers.adapters import LayerKind
from tdcompress.layers.kinds import kind_of, refusal_of
from tdcompress.surgery.selection import ancestors

Hooks = Literal["refuse", "keep"]
Parametrized = Literal["refuse", "bake"]

# Everything in which a module keeps hooks, as PyTorch itself has it, and the flag that says of which kind they are.
HOOK_TABLES = tuple(name for name in vars(nn.Module()) if "hook" in name)

# Wrappers that took note of the parameters, or of the code, when they were made.
_WRAPPERS = {
    "DistributedDataParallel": "hand over the model that it wraps, its `module`, and wrap the result anew",
    "FullyShardedDataParallel": "hand over the model before it is sharded",
    "FSDPModule": "hand over the model before fully_shard",
    "OptimizedModule": "hand over the model that was given to torch.compile, its `_orig_mod`, and compile the result",
}


@dataclass(frozen=True)
class Policy:
    """What may happen to a layer that is more than a plain one; see `decompose`."""

    hooks: Hooks = "refuse"
    parametrized: Parametrized = "refuse"
    allow_subclasses: bool = False

    def __post_init__(self) -> None:
        if self.hooks not in ("refuse", "keep"):
            raise CompressionError(f"hooks must be 'refuse' or 'keep', got {self.hooks!r}.")
        if self.parametrized not in ("refuse", "bake"):
            raise CompressionError(f"parametrized must be 'refuse' or 'bake', got {self.parametrized!r}.")


def plain(module: nn.Module, policy: Policy) -> Any:
    """A plain layer with the weights of `module`, as they are now, without its parametrizations and hooks.

    Args:
        module: a layer of a model; it is not touched, and the stand-in may share its memory.
        policy: what is allowed.

    Raises:
        CompressionError: it cannot be had, or not under this policy; the message says what to do.
    """
    kind = _check_class(module, policy)
    _check_contents(module, {kind.weight, kind.bias})
    with torch.enable_grad():  # so that what is computed from trained parameters says that it is trained
        computed = dict(_computed(module))
    if computed and policy.parametrized == "refuse":
        raise CompressionError(
            f"its {', '.join(computed)} is parametrized or pruned; pass parametrized='bake' to take the values of this "
            "moment, or remove the parametrization first."
        )
    check_hooks(module, policy)
    # A computed one is not looked at here: in training mode spectral norm would take a step for it.
    values = {
        name: computed[name] if name in computed else getattr(module, name, None) for name in (kind.weight, kind.bias)
    }
    _check_tensor_types(*values.values())
    stand_in = ConvSpec.read(module).build(device="meta")
    for name, value in values.items():
        if value is not None:
            setattr(stand_in, name, nn.Parameter(value.detach(), requires_grad=value.requires_grad))
    return stand_in.train(module.training)


def check_wrapper(model: nn.Module, layer: str) -> None:
    """Refuse a layer inside a wrapper that would go on with the old parameters.

    Raises:
        CompressionError: it names the wrapper and says when to decompose.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for outer in ancestors(layer):
        for kind in type(modules[outer]).__mro__:
            if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
                what = f"{outer!r}, around it," if outer else "the model"
                raise CompressionError(f"{what} is wrapped by {kind.__name__}; {_WRAPPERS[kind.__name__]}.")


def check_hooks(module: nn.Module, policy: Policy) -> None:
    """Refuse a layer with hooks unless they are to be kept.

    Raises:
        CompressionError: it says how to keep them.
    """
    if policy.hooks == "refuse" and any(kept_hooks(module, table) for table in HOOK_TABLES):
        raise CompressionError("it carries hooks; pass hooks='keep' to carry them over, or remove them first.")


def check_forward(module: nn.Module) -> None:
    """Refuse a layer whose forward was replaced on the instance, as some launchers do.

    Raises:
        CompressionError: it is so.
    """
    if "forward" in vars(module):
        raise CompressionError("its forward was replaced on the instance, and the new layer would lose that; undo it.")


def kept_hooks(module: nn.Module, table: str) -> Mapping[int, object]:
    """The hooks in one of the `HOOK_TABLES`, but for those that only compute the weight."""
    hooks = getattr(module, table)
    if not isinstance(hooks, Mapping):
        return {}
    return {number: hook for number, hook in hooks.items() if not _computes(getattr(hook, "hook", hook))}


def _computes(hook: object) -> bool:
    """Whether it is what PyTorch's norms and pruning hang on a layer, no use once the weight is baked."""
    return isinstance(hook, BasePruningMethod) or getattr(hook, "__module__", "").startswith("torch.nn.utils.")


def _check_class(module: nn.Module, policy: Policy) -> LayerKind:
    known, why = kind_of(module), refusal_of(module)
    if known is None or why is not None:
        raise CompressionError(why or "")
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise CompressionError("it is lazy and has no weight yet; run one forward first.")
    # A parametrized module has a class of its own, made from the one it was.
    own = type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)
    if not known.matches(own) and not policy.allow_subclasses:
        raise CompressionError(
            f"{own.__name__} is a subclass of {known.name} whose forward may differ; pass allow_subclasses=True "
            "if it does not."
        )
    check_forward(module)
    return known


def _check_contents(module: nn.Module, known: set[str]) -> None:
    """Refuse a layer that owns more than a weight and a bias: the replacement would lose it."""
    for hook in module._forward_pre_hooks.values():
        name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", "")
        known |= {f"{name}_{part}" for part in ("g", "v", "u", "orig", "mask")}
    own = [*module._parameters, *module._buffers, *module._modules]
    extra = [name for name in own if name not in known and name != "parametrizations"]
    if extra:
        raise CompressionError(
            f"beside weight and bias it has {', '.join(extra)}, which the new layer would lose; take that out first."
        )


def _computed(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are computed from others at every forward, by name, as they are now in evaluation mode."""
    if parametrize.is_parametrized(module):
        for name, steps in module.parametrizations.items():  # type: ignore[operator, union-attr]
            # A copy: spectral norm takes a step of its power iteration whenever it is asked in training mode.
            yield name, copy.deepcopy(steps).eval()()
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield hook.name, hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm):
            yield hook.name, hook.compute_weight(module, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod):
            yield hook._tensor_name, hook.apply_mask(module)  # type: ignore[no-untyped-call]


def _check_tensor_types(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        kind = torch.Tensor if tensor is None else type(tensor.data)
        if kind is not torch.Tensor:
            raise CompressionError(
                f"its weight or bias is a {kind.__name__}; only plain tensors can be factorized: decompose before the "
                "model is sharded or quantized."
            )
