"""The paper's networks, a deeper one, and two small ones for scikit-learn's digits.

Every network here is a chain of named children that run in the order in which they are registered, so what
comes after a layer is `model.named_children()` from that name on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn

from examples.paper.blocks import BasicBlock, Bottleneck

Network = TypeVar("Network", bound=nn.Module)


def _convolution_block(number: int, in_channels: int, out_channels: int) -> dict[str, nn.Module]:
    """`conv{number}`, `bn{number}`, `relu{number}`: 3×3 with padding 1, so height and width stay."""
    return {
        f"conv{number}": nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        f"bn{number}": nn.BatchNorm2d(out_channels),
        f"relu{number}": nn.ReLU(),
    }


class GaripovNet(nn.Sequential):
    """The seven-layer network of Garipov et al. (2016), as the paper trains it.

    Six 3×3 convolutions `conv1` .. `conv6` (in → 64 → 64 → 128 → 128 → 128 → 128), BatchNorm after the first
    five, ReLU after each BatchNorm, max-pooling (3, stride 2) after the second and fourth, average-pooling
    (4) after the last, and one linear layer. Images of 28×28 and of 32×32 pixels both end as one pixel.

    Args:
        in_channels: channels of an image: 1 for Fashion-MNIST, 3 for CIFAR-10.
        num_classes: outputs of the linear layer.

    Example:
        >>> import torch
        >>> model = GaripovNet(in_channels=1)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> sum(parameter.numel() for parameter in model.parameters())
        556490
    """

    def __init__(self, in_channels: int, num_classes: int = 10) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (before, after) in enumerate(pairwise((in_channels, 64, 64, 128, 128, 128)), start=1):
            layers.update(_convolution_block(number, before, after))
            if number in (2, 4):
                layers[f"pool{number}"] = nn.MaxPool2d(kernel_size=3, stride=2)
        layers["conv6"] = nn.Conv2d(128, 128, kernel_size=3, padding=1)
        layers["pool6"] = nn.AvgPool2d(kernel_size=4)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(128, num_classes)
        super().__init__(layers)


class DigitsNet(nn.Sequential):
    """Four convolutions for the 8×8 digits of scikit-learn: the paper's questions in seconds.

    `conv1` .. `conv4` (1 → 12 → 24 → 24 → 24), each followed by BatchNorm and ReLU, max-pooling (2) after the
    second, the mean over pixels, and one linear layer. It is about as wide as the digits need: were it much
    wider, most compressions would not change what it answers, and there would be nothing to see.

    Args:
        num_classes: outputs of the linear layer.

    Example:
        >>> import torch
        >>> DigitsNet()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (before, after) in enumerate(pairwise((1, 12, 24, 24, 24)), start=1):
            layers.update(_convolution_block(number, before, after))
            if number == 2:
                layers["pool2"] = nn.MaxPool2d(kernel_size=2)
        layers["pool4"] = nn.AdaptiveAvgPool2d(output_size=1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(24, num_classes)
        super().__init__(layers)


@dataclass(frozen=True)
class Shape:
    """What a ResNet consists of.

    Attributes:
        block: the class of its blocks.
        blocks: how many in each group; all groups but the first begin with a stride of 2.
        widths: the `width` of the blocks in each group.
        stem: kernel size and stride of the first convolution, whose channels are the first group's width. There is
            no max-pooling behind it.
        projection: whether shortcuts between groups have parameters; see `BasicBlock`.
    """

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: tuple[int, int] = (3, 1)
    projection: bool = True


class ResNet(nn.Sequential):
    """A residual network for small images (He et al., 2016): a stem, groups of blocks, one linear layer.

    The children are `conv1`, `bn1`, `relu`, `layer1`, `layer2` and so on, `avgpool`, `flatten`, `fc`, in that order;
    the names of all layers are those of torchvision's ResNets.

    Args:
        shape: what it consists of.
        in_channels: channels of an image.
        num_classes: outputs of the linear layer.
    """

    def __init__(self, shape: Shape, in_channels: int, num_classes: int = 10) -> None:
        (size, stride), channels = shape.stem, shape.widths[0]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, bias=False)
        layers["bn1"] = nn.BatchNorm2d(channels)
        layers["relu"] = nn.ReLU()
        for group, (number, width) in enumerate(zip(shape.blocks, shape.widths, strict=True), start=1):
            block = partial(shape.block, width=width, projection=shape.projection)
            first = block(channels, stride=1 if group == 1 else 2)
            channels = shape.block.expansion * width
            layers[f"layer{group}"] = nn.Sequential(first, *(block(channels) for _ in range(number - 1)))
        layers["avgpool"] = nn.AdaptiveAvgPool2d(output_size=1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(in_channels: int, num_classes: int = 10) -> ResNet:
    """The ResNet-18 that the paper trains on CIFAR-10: a 3×3 stem of stride 1, four groups of two basic blocks.

    Args:
        in_channels: channels of an image: 3 for CIFAR-10.
        num_classes: outputs of the linear layer.

    Returns:
        The network, initialised from PyTorch's global generator; see `seeded`.

    Example:
        >>> model = resnet18(in_channels=3)
        >>> sum(parameter.numel() for parameter in model.parameters())
        11173962
        >>> model.get_submodule("layer3.0.downsample.0").weight.shape
        torch.Size([256, 128, 1, 1])
    """
    return ResNet(Shape(BasicBlock, (2, 2, 2, 2)), in_channels, num_classes)


def resnet50(in_channels: int, num_classes: int = 10) -> ResNet:
    """ResNet-50 for images of about 28×28 pixels: its 7×7 stem of stride 2, but no max-pooling behind it.

    The last BatchNorm of every block starts with a weight of zero, so that at first a block is its shortcut (Goyal et
    al. 2017): without it the first epochs learn less.

    Args:
        in_channels: channels of an image: 1 for Fashion-MNIST.
        num_classes: outputs of the linear layer.

    Returns:
        The network, initialised from PyTorch's global generator; see `seeded`.

    Example:
        >>> model = resnet50(in_channels=1)
        >>> sum(isinstance(module, nn.Conv2d) for module in model.modules())
        53
        >>> model.get_submodule("layer1.0.conv3").weight.shape
        torch.Size([256, 64, 1, 1])
    """
    model = ResNet(Shape(Bottleneck, (3, 4, 6, 3), stem=(7, 2)), in_channels, num_classes)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
    return model


def digits_resnet(num_classes: int = 10) -> ResNet:
    """The ResNet-20 of He et al. for CIFAR-10, narrower, for the 8×8 digits of scikit-learn.

    Three groups of three basic blocks, so 18 convolutions between the stem and the linear layer, as there; the
    shortcuts between groups have no parameters, as there. The widths are 16, 24 and 48 instead of 16, 32 and 64.

    Args:
        num_classes: outputs of the linear layer.

    Returns:
        The network, initialised from PyTorch's global generator; see `seeded`.

    Example:
        >>> model = digits_resnet()
        >>> sum(parameter.numel() for parameter in model.parameters())
        158970
    """
    shape = Shape(BasicBlock, (3, 3, 3), widths=(16, 24, 48), projection=False)
    return ResNet(shape, in_channels=1, num_classes=num_classes)


def seeded(factory: Callable[[], Network], seed: int) -> Network:
    """A new network whose initial weights depend on the seed alone.

    PyTorch's initialisers draw from the global generator; it is put back as it was.

    Args:
        factory: makes the network, on the CPU.
        seed: the same seed gives the same bits.

    Example:
        >>> first, second = seeded(DigitsNet, seed=1), seeded(DigitsNet, seed=1)
        >>> bool((first.conv1.weight == second.conv1.weight).all())
        True
    """
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        return factory()
    finally:
        torch.set_rng_state(state)
