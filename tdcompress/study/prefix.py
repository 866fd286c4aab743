"""Evaluation of many models that begin alike: what comes out of the beginning is computed once."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tdcompress.layers import FactorizedConv
from tdcompress.metrics import evaluating
from tdcompress.study.features import LIMIT, activation_budget

# Above this share of its parameters a stack moves more memory than the dense convolution for about as many
# multiply-adds, so the dense kernel that it stands for gives the same outputs sooner (measured on a CPU).
_DENSE_ABOVE = 0.6


class PrefixCache:
    """The outputs of models that differ from `model` in a later part, computed from where they differ on.

    A model that is an `nn.Sequential`, nested ones included, is a chain of links. Those at the beginning whose
    parameters and buffers equal the original's, bit for bit, are not run again: what comes out of them is kept.
    Any other model is one link, and is run as a whole.

    The outputs are those of evaluation mode up to rounding: BatchNorm is multiplied into the convolution before it, and
    a factorized convolution that is no smaller than about the dense one is run as that.

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
        self._sizes = _sizes(self._links, inputs[:1])
        self._place, self._kept = 0, inputs

    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        """The model's outputs for all inputs, batch by batch, in their order.

        Args:
            model: of the original's architecture, but for factorized layers; left as it was.
        """
        chain = links(model)
        start = self._advance(min(self._alike(chain), len(chain) - 1))
        tail = folded(nn.Sequential(OrderedDict(_flat_names(chain[start:]))))
        batches = torch.split(self._kept if start else self._inputs, self._batch_size(start))
        with torch.no_grad(), evaluating(tail):
            for batch in batches:
                yield tail(batch)

    def _alike(self, chain: list[tuple[str, nn.Module]]) -> int:
        """How many links at the beginning are the original's."""
        for place, ((name, link), (original, _), state) in enumerate(
            zip(chain, self._links, self._states, strict=False)
        ):
            if name != original or not _same(_state(link), state):
                return place
        return min(len(chain), len(self._links))

    def _advance(self, place: int) -> int:
        """Have what goes into this link, or into the last one before it whose input is not too large to keep."""
        place = max(at for at in range(place + 1) if not at or self._sizes[at] * len(self._inputs) <= self._limit)
        if not place or place == self._place:
            return place
        if place < self._place:
            self._place, self._kept = 0, self._inputs
        part = nn.Sequential(OrderedDict(_flat_names(self._links[self._place : place])))
        self._kept = _run(folded(part), self._kept, self._batch_size(self._place, place))
        self._place = place
        return place

    def _batch_size(self, start: int, end: int | None = None) -> int:
        return min(512, max(1, activation_budget(self._inputs.device) // max(self._sizes[start:end])))


def links(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that run one after the other in a chain, by name; the model itself if it is none.

    >>> [name for name, _ in links(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Flatten())))]
    ['0', '1.0', '1.1']
    """
    found: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children() if _is_chain(model) else ():
        inner = links(child) if _is_chain(child) else [("", child)]
        found += [(f"{name}.{below}".rstrip("."), link) for below, link in inner]
    return found or [("", model)]


def folded(chain: nn.Sequential) -> nn.Sequential:
    """A copy for evaluation only, which does the same up to rounding with less work.

    Every BatchNorm is multiplied into the convolution before it, and large factorized layers become dense.

    Args:
        chain: its children; what is inside them, such as residual blocks, stays as it is but for factorized layers.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in _with_large_ones_dense(copy.deepcopy(chain).eval()).named_children():
        last = next(reversed(children), "")
        before = children.get(last)
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            children[last] = fuse_conv_bn_eval(before, child)
        elif isinstance(child, nn.BatchNorm2d) and isinstance(before, FactorizedConv):
            *others, (stage, conv) = before.named_children()
            fused = fuse_conv_bn_eval(conv, child)  # type: ignore[type-var]
            children[last] = nn.Sequential(OrderedDict([*others, (stage, fused)]))
        else:
            children[name] = child
    for name, child in children.items():
        if isinstance(child, nn.ReLU) and name != next(iter(children)):  # the chain's input is not ours to change
            child.inplace = True
    return nn.Sequential(children).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _with_large_ones_dense(chain: nn.Module) -> nn.Module:
    for parent in list(chain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FactorizedConv) and 1 - child.ratio > _DENSE_ABOVE:
                setattr(parent, name, child.to_conv())
    return chain


def _is_chain(model: nn.Module) -> bool:
    plain = type(model).forward is nn.Sequential.forward and not isinstance(model, FactorizedConv)
    return plain and not model._forward_hooks and not model._forward_pre_hooks


def _state(link: nn.Module) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    modules = [(type(module).__name__, module.extra_repr()) for module in link.modules()]
    return modules, {name: value.detach() for name, value in link.state_dict().items()}


def _same(
    first: tuple[list[tuple[str, str]], dict[str, Tensor]], second: tuple[list[tuple[str, str]], dict[str, Tensor]]
) -> bool:
    if first[0] != second[0] or first[1].keys() != second[1].keys():
        return False
    return all(torch.equal(value, second[1][name]) for name, value in first[1].items())


def _sizes(chain: list[tuple[str, nn.Module]], one: Tensor) -> list[int]:
    """Bytes of one sample before every link, and after the last."""
    sizes = [one.numel() * one.element_size()]
    with torch.no_grad():
        for _, link in chain:
            with evaluating(link):
                one = link(one)
            sizes.append(one.numel() * one.element_size())
    return sizes


def _run(chain: nn.Module, inputs: Tensor, step: int) -> Tensor:
    """The chain's outputs for all inputs in one tensor, images in the channels-last memory format."""
    with torch.no_grad():
        first = chain(inputs[:1])
        # Filled in place: joining batches would need the memory twice.
        outputs = first.new_empty(len(inputs), *first.shape[1:])
        outputs = outputs.contiguous(memory_format=torch.channels_last) if outputs.ndim == 4 else outputs
        for start in range(0, len(inputs), step):
            outputs[start : start + step] = chain(inputs[start : start + step])
    return outputs


def _flat_names(chain: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """Names without dots, which modules must not have."""
    return [(name.replace(".", "-") or "model", link) for name, link in chain]
