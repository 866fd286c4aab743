"""Models that are chains of modules: their links, and copies of chains that do the same with less work."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tdcompress.layers import FactorizedConv

# Above this share of its parameters a stack moves more memory than the dense convolution for about as many
# multiply-adds, so the dense kernel that it stands for gives the same outputs sooner (measured on a CPU).
_DENSE_ABOVE = 0.6
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def links(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that run one after the other in a chain, by name; the model itself if it is none.

    >>> [name for name, _ in links(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Flatten())))]
    ['0', '1.0', '1.1']
    """
    chain: list[tuple[str, nn.Module]] = []
    for name, child in _children(model) if _is_chain(model) else ():
        inner = links(child) if _is_chain(child) else [("", child)]
        chain += [(f"{name}.{below}".rstrip("."), link) for below, link in inner]
    return chain or [("", model)]


def folded(chain: nn.Sequential, fast: bool = True) -> nn.Sequential:
    """A copy for evaluation only, which does the same up to rounding with less work.

    Every BatchNorm is multiplied into the convolution before it, activations behind either work in place, and large
    factorized layers become dense. What carries hooks stays as it is.

    Args:
        chain: its children; what is inside them, such as residual blocks, stays as it is but for factorized layers.
        fast: whether kernels of images shall be in the memory format in which convolutions are fastest.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in _children(_with_large_ones_dense(copy.deepcopy(chain).eval())):
        last = next(reversed(children), "")
        merged = _merged(children[last], child) if last else None
        if merged is not None:
            children[last] = merged
        elif type(child) is nn.ReLU and not hooked(child) and last and makes_new_memory(children[last], -1):
            children[name] = nn.ReLU(inplace=True)  # not the module itself, which may stand elsewhere too
        else:
            children[name] = child
    chain = nn.Sequential(children)
    for module in chain.modules() if fast else ():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return chain


def _merged(before: nn.Module, norm: Any) -> nn.Module | None:
    """A norm multiplied into what is before it; None where that cannot be."""
    if type(norm) not in _NORMS or norm.running_mean is None or hooked(norm) or hooked(before):
        return None
    if type(before) in _CONVOLUTIONS:
        return fuse_conv_bn_eval(before, norm)  # type: ignore[type-var]
    if isinstance(before, FactorizedConv):
        *others, (stage, last) = _children(before)
        if type(last) in _CONVOLUTIONS:
            fused = fuse_conv_bn_eval(last, norm)  # type: ignore[type-var]
            return nn.Sequential(OrderedDict([*others, (stage, fused)]))
    return None


def makes_new_memory(link: nn.Module, end: int) -> bool:
    """Whether the first (0) or last (-1) plain module in a link writes to no memory but its own output's."""
    while type(link).forward is nn.Sequential.forward and len(link):  # type: ignore[arg-type]
        if hooked(link, inside=False):
            return False
        link = link[end]  # type: ignore[index]
    return type(link) in (*_CONVOLUTIONS, *_NORMS, nn.Linear) and not hooked(link)


def _with_large_ones_dense(chain: nn.Module) -> nn.Module:
    for parent in list(chain.modules()):
        for name, child in _children(parent):
            if isinstance(child, FactorizedConv) and 1 - child.ratio > _DENSE_ABOVE and not hooked(child):
                setattr(parent, name, child.to_conv())
    return chain


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All of them: `named_children` leaves out one that stands there twice, which a chain runs twice."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _is_chain(model: nn.Module) -> bool:
    plain = type(model).forward is nn.Sequential.forward and not isinstance(model, FactorizedConv)
    return plain and not hooked(model, inside=False)


def hooked(module: nn.Module, inside: bool = True) -> bool:
    """Whether a module, or one inside it, carries hooks of its forward."""
    return any(one._forward_hooks or one._forward_pre_hooks for one in (module.modules() if inside else (module,)))


def sequential(chain: list[tuple[str, nn.Module]]) -> nn.Sequential:
    """A chain of them, with names without dots, which modules must not have."""
    return nn.Sequential(OrderedDict((name.replace(".", "-") or "model", link) for name, link in chain))
