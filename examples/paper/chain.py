"""A network that is a chain of children, cut at a layer: what is before it runs once for all trials."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tdcompress.layers import FactorizedConv

# Activations of one batch: what stays in a core's caches is several times faster than what does not.
_BYTES_PER_BATCH = {"cpu": 2 * 2**20, "cuda": 2**30}


def cut(model: nn.Module, layer: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The children before the one that holds a layer, and those from it on, under their own names.

    Args:
        model: a chain: its children run in the order in which they are registered.
        layer: a dotted name, as in `model.named_modules()`.

    >>> from examples.paper.models import DigitsNet
    >>> before, after = cut(DigitsNet(), "conv2")
    >>> len(before), next(iter(after._modules))
    (3, 'conv2')
    """
    children = list(model.named_children())
    place = [name for name, _ in children].index(layer.partition(".")[0])
    return nn.Sequential(OrderedDict(children[:place])), nn.Sequential(OrderedDict(children[place:]))


def batch_size(images: Tensor, width: int = 1) -> int:
    """How many of these (N, C, H, W), images or activations, are best taken at a time.

    Args:
        images: what goes into a chain.
        width: by how much the largest activations in the chain are larger than the images.

    >>> batch_size(torch.zeros(1000, 64, 28, 28)), batch_size(torch.zeros(1000, 1, 28, 28), width=64)
    (10, 10)
    """
    budget = _BYTES_PER_BATCH.get(images.device.type, _BYTES_PER_BATCH["cuda"])
    return min(512, max(1, budget // (images[:1].numel() * images.element_size() * width)))


def run(chain: nn.Module, images: Tensor, step: int = 16) -> Tensor:
    """The chain's outputs for all images, (N, …), in one tensor in the channels-last memory format.

    Args:
        chain: in evaluation mode.
        images: (N, C, H, W).
        step: images at a time.
    """
    with torch.no_grad():
        first = chain(images[:1])
        # Filled in place: joining batches would need the memory twice.
        outputs = first.new_empty(len(images), *first.shape[1:])
        outputs = outputs.contiguous(memory_format=torch.channels_last) if outputs.ndim == 4 else outputs
        for start in range(0, len(images), step):
            outputs[start : start + step] = chain(images[start : start + step])
    return outputs


def folded(chain: nn.Sequential) -> nn.Sequential:
    """A copy for evaluation only, with every BatchNorm multiplied into the convolution before it.

    The same function up to rounding; a factorized convolution takes the BatchNorm into its last stage.

    Args:
        chain: in evaluation mode. What is inside its children, such as residual blocks, stays as it is.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in copy.deepcopy(chain).named_children():
        last = next(reversed(children), "")
        before = children.get(last)
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            children[last] = fuse_conv_bn_eval(before, child)
        elif isinstance(child, nn.BatchNorm2d) and isinstance(before, FactorizedConv):
            stages = OrderedDict(before.named_children())
            stage = next(reversed(stages))
            stages[stage] = fuse_conv_bn_eval(stages[stage], child)
            children[last] = nn.Sequential(stages)
        else:
            children[name] = child
    for name, child in children.items():
        if isinstance(child, nn.ReLU) and name != next(iter(children)):  # the chain's input is not ours to change
            child.inplace = True
    return nn.Sequential(children).to(memory_format=torch.channels_last)


class Features:
    """A layer's inputs and outputs in the original network, a batch at a time, as often as asked.

    They are kept in memory if they take no more than `limit` bytes; otherwise they are computed anew every time.

    Args:
        model: the original network, in evaluation mode.
        layer: the layer's name.
        images: what goes into the network, (N, C, H, W).
        limit: bytes.
    """

    def __init__(self, model: nn.Module, layer: str, images: Tensor, limit: int = 4 * 2**30) -> None:
        before, after = cut(model, layer)
        self._chain = nn.Sequential(*before, next(after.children()))
        self._layer = model.get_submodule(layer)
        self._images = images
        pair = self._computed(images[:1])
        self._step = batch_size(max(pair, key=torch.numel))
        size = sum(tensor.numel() * tensor.element_size() for tensor in pair)
        self._kept = list(self._all()) if size * len(images) <= limit else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._kept) if self._kept is not None else self._all()

    def _all(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self._computed, self._images.split(self._step))

    def _computed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self._layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        try:
            with torch.no_grad():
                self._chain(images.contiguous(memory_format=torch.channels_last))
        finally:
            handle.remove()
        return seen[0]
