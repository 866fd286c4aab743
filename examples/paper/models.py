"""The paper's networks, and a small one for scikit-learn's digits.

Every network here is a chain of named children that run in the order in which they are registered, so what
comes after a layer is `model.named_children()` from that name on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

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


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al., 2016), with torchvision's names.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution; with another number of channels or a stride above 1, the
            shortcut is `downsample`, a 1×1 convolution and a BatchNorm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet(nn.Sequential):
    """ResNet for images of 32×32 pixels: a 3×3 stem without max-pooling, then four groups of blocks.

    The children are `conv1`, `bn1`, `relu`, `layer1` .. `layer4`, `avgpool`, `flatten`, `fc`, in that order;
    the names of all layers are those of torchvision's ResNets.

    Args:
        blocks: number of blocks in each of the four groups.
        in_channels: channels of an image.
        num_classes: outputs of the linear layer.
    """

    def __init__(self, blocks: tuple[int, int, int, int], in_channels: int, num_classes: int = 10) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False)
        layers["bn1"] = nn.BatchNorm2d(64)
        layers["relu"] = nn.ReLU()
        channels = 64
        for group, number_of_blocks in enumerate(blocks, start=1):
            width, stride = 64 * 2 ** (group - 1), 1 if group == 1 else 2
            first = BasicBlock(channels, width, stride)
            others = (BasicBlock(width, width) for _ in range(number_of_blocks - 1))
            layers[f"layer{group}"] = nn.Sequential(first, *others)
            channels = width
        layers["avgpool"] = nn.AdaptiveAvgPool2d(output_size=1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels, num_classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(in_channels: int, num_classes: int = 10) -> ResNet:
    """The ResNet-18 that the paper trains on CIFAR-10.

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
    return ResNet((2, 2, 2, 2), in_channels, num_classes)


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
