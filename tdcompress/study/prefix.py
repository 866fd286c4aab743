"""Evaluation of many models that begin alike: what comes out of the beginning is computed once."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tdcompress.layers import FactorizedConv
from tdcompress.metrics import evaluating
from tdcompress.study.features import LIMIT, activation_budget, copied

# Above this share of its parameters a stack moves more memory than the dense convolution for about as many
# multiply-adds, so the dense kernel that it stands for gives the same outputs sooner (measured on a CPU).
_DENSE_ABOVE = 0.6
_FEW = 2  # samples that show what comes out of a link: a norm without running statistics refuses a single one
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

State = tuple[list[tuple[str, str]], dict[str, Tensor]]


class PrefixCache:
    """The outputs of models that differ from `model` in a later part, computed from where they differ on.

    A model that is an `nn.Sequential`, nested ones included, is a chain of links. Those at the beginning whose
    parameters and buffers equal the original's, bit for bit, are not run again: what comes out of them is kept.
    Any other model is one link, and is run as a whole.

    The outputs are those of evaluation mode up to rounding: BatchNorm is multiplied into the convolution before it, and
    a factorized convolution that is no smaller than about the dense one is run as that. Links that might write get
    copies, so neither the inputs nor what is kept is overwritten by whatever a model does in place. Where a BatchNorm
    without running statistics makes samples depend on each other, all of them are one batch.

    Args:
        model: the original.
        inputs: (samples, …), on the model's device.
        limit: bytes that may be kept.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()).eval()
        >>> images = torch.randn(10, 1, 6, 6)
        >>> cache = PrefixCache(model, images)
        >>> torch.allclose(torch.cat(list(cache.outputs(model))), model(images), atol=1e-5)
        True
    """

    def __init__(self, model: nn.Module, inputs: Tensor, limit: int = LIMIT) -> None:
        self._links = links(model)
        self._states = [_state(link) for _, link in self._links]
        self._inputs, self._limit = inputs, limit
        self._together = any(isinstance(m, _BatchNorm) and m.running_mean is None for m in model.modules())
        self._fast = _runs_fast(self._links, inputs[:_FEW])
        self._sizes = _sizes(self._links, copied(inputs[:_FEW], fast=False))
        self._place, self._kept = 0, inputs

    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        """The model's outputs for all inputs, batch by batch, in their order.

        Args:
            model: of the original's architecture, but for factorized layers; left as it was.
        """
        chain = links(model)
        start = self._advance(min(self._alike(chain), len(chain) - 1))
        tail = folded(_sequential(chain[start:]), self._fast)
        for batch in torch.split(self._kept if start else self._inputs, self._batch_size(start)):
            yield _answer(tail, _for(tail, batch, self._fast))

    def _alike(self, chain: list[tuple[str, nn.Module]]) -> int:
        """How many links at the beginning are the original's."""
        for place, ((name, link), (original, _), state) in enumerate(
            zip(chain, self._links, self._states, strict=False)
        ):
            if name != original or _hooked(link) or not _same(_state(link), state):
                return place
        return min(len(chain), len(self._links))

    def _advance(self, place: int) -> int:
        """Have what goes into this link, or into the last one before it whose input is not too large to keep."""
        place = max(at for at in range(place + 1) if not at or self._sizes[at] * len(self._inputs) <= self._limit)
        if not place or place == self._place:
            return place
        if place < self._place:
            self._place, self._kept = 0, self._inputs
        part = folded(_sequential(self._links[self._place : place]), self._fast)
        self._kept = _run(part, self._kept, self._batch_size(self._place, place), self._fast)
        self._place = place
        return place

    def _batch_size(self, start: int, end: int | None = None) -> int:
        if self._together:
            return max(1, len(self._inputs))
        largest = max((size for size in self._sizes[start:end] if size < math.inf), default=1)
        return min(512, max(1, int(activation_budget(self._inputs.device) / max(1, largest))))


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
        elif type(child) is nn.ReLU and not _hooked(child) and last and _makes_new_memory(children[last], -1):
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
    if type(norm) not in _NORMS or norm.running_mean is None or _hooked(norm) or _hooked(before):
        return None
    if type(before) in _CONVOLUTIONS:
        return fuse_conv_bn_eval(before, norm)  # type: ignore[type-var]
    if isinstance(before, FactorizedConv):
        *others, (stage, last) = _children(before)
        if type(last) in _CONVOLUTIONS:
            fused = fuse_conv_bn_eval(last, norm)  # type: ignore[type-var]
            return nn.Sequential(OrderedDict([*others, (stage, fused)]))
    return None


def _makes_new_memory(link: nn.Module, end: int) -> bool:
    """Whether the first (0) or last (-1) plain module in a link writes to no memory but its own output's."""
    while type(link).forward is nn.Sequential.forward and len(link):  # type: ignore[arg-type]
        if _hooked(link, inside=False):
            return False
        link = link[end]  # type: ignore[index]
    return type(link) in (*_CONVOLUTIONS, *_NORMS, nn.Linear) and not _hooked(link)


def _with_large_ones_dense(chain: nn.Module) -> nn.Module:
    for parent in list(chain.modules()):
        for name, child in _children(parent):
            if isinstance(child, FactorizedConv) and 1 - child.ratio > _DENSE_ABOVE and not _hooked(child):
                setattr(parent, name, child.to_conv())
    return chain


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """All of them: `named_children` leaves out one that stands there twice, which a chain runs twice."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _is_chain(model: nn.Module) -> bool:
    plain = type(model).forward is nn.Sequential.forward and not isinstance(model, FactorizedConv)
    return plain and not _hooked(model, inside=False)


def _hooked(module: nn.Module, inside: bool = True) -> bool:
    return any(one._forward_hooks or one._forward_pre_hooks for one in (module.modules() if inside else (module,)))


def _state(link: nn.Module) -> State:
    modules = [(type(module).__name__, module.extra_repr()) for module in link.modules()]
    # Not state_dict(), which leaves out buffers that are not persistent.
    tensors = [*link.named_parameters(remove_duplicate=False), *link.named_buffers(remove_duplicate=False)]
    return modules, {name: value.detach() for name, value in tensors}


def _same(first: State, second: State) -> bool:
    if first[0] != second[0] or first[1].keys() != second[1].keys():
        return False
    return all(torch.equal(value, second[1][name]) for name, value in first[1].items())


def _runs_fast(chain: list[tuple[str, nn.Module]], few: Tensor) -> bool:
    """Whether the links can do with images in another memory format; a `view` between them cannot."""
    try:
        _answer(folded(_sequential(chain)), copied(few, fast=True))
    except RuntimeError:  # if it is an error of their own, running them as they are will raise it
        return False
    return True


def _sizes(chain: list[tuple[str, nn.Module]], few: Tensor) -> list[float]:
    """Bytes of one sample before every link, and after the last; infinite where samples cannot be told apart."""
    count = len(few)

    def size(value: Any) -> float:
        apart = isinstance(value, Tensor) and value.ndim and len(value) == count
        return value.numel() / max(1, count) * value.element_size() if apart else math.inf

    sizes, value = [size(few)], few
    for _, link in chain:
        with evaluating(link):
            value = _answer(link, value)
        sizes.append(size(value))
    return sizes


def _answer(link: nn.Module, value: Any) -> Any:
    with torch.no_grad():
        return link(value)


def _for(part: nn.Module, batch: Tensor, fast: bool) -> Tensor:
    """What may be given to a part: a copy, unless its first module writes nowhere else."""
    return batch if _makes_new_memory(part, 0) else copied(batch, fast)


def _run(part: nn.Module, inputs: Tensor, step: int, fast: bool) -> Tensor:
    """The outputs for all inputs in one tensor, images in the memory format that `copied` gives them."""
    outputs = None
    for start in range(0, max(1, len(inputs)), step):
        output = _answer(part, _for(part, inputs[start : start + step], fast))
        if outputs is None:
            layout = torch.channels_last if fast and output.ndim == 4 else torch.contiguous_format
            # Filled in place: joining batches would need the memory twice.
            shape = (len(inputs), *output.shape[1:])
            outputs = torch.empty(shape, dtype=output.dtype, device=output.device, memory_format=layout)
        outputs[start : start + step] = output
    assert outputs is not None
    return outputs


def _sequential(chain: list[tuple[str, nn.Module]]) -> nn.Sequential:
    """A chain of them, with names without dots, which modules must not have."""
    return nn.Sequential(OrderedDict((name.replace(".", "-") or "model", link) for name, link in chain))
