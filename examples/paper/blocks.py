"""The residual blocks of He et al. (2016), with torchvision's names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut.

    Args:
        in_channels: channels of the input.
        width: channels of the convolutions and of the output.
        stride: stride of the first convolution; with another number of channels or a stride above 1, the
            shortcut is `downsample`.
        projection: `downsample` is a 1×1 convolution and a BatchNorm (He's option B), without it a
            `PaddedShortcut` (option A).

    Example:
        >>> import torch
        >>> BasicBlock(16, 24, stride=2)(torch.zeros(5, 16, 8, 8)).shape
        torch.Size([5, 24, 4, 4])
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, *, projection: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride, projection)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, width, ⌈H / stride⌉, ⌈W / stride⌉)."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(hidden)) + shortcut)


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution and a shortcut; a stride is that of the 3×3, as in torchvision.

    Args:
        in_channels: channels of the input.
        width: channels of the 3×3 convolution; the output has four times as many.
        stride: stride of the 3×3 convolution; with another number of channels or a stride above 1, the
            shortcut is `downsample`.
        projection: see `BasicBlock`.

    Example:
        >>> import torch
        >>> Bottleneck(64, 32, stride=2)(torch.zeros(5, 64, 7, 7)).shape
        torch.Size([5, 128, 4, 4])
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, *, projection: bool = True) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, out_channels, stride, projection)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, 4 · width, ⌈H / stride⌉, ⌈W / stride⌉)."""
        shortcut = features if self.downsample is None else self.downsample(features)
        hidden = self.relu(self.bn1(self.conv1(features)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        return self.relu(self.bn3(self.conv3(hidden)) + shortcut)


class PaddedShortcut(nn.Module):
    """Every stride-th pixel, and channels of zeros behind: a shortcut without parameters (He's option A).

    Args:
        extra_channels: how many channels of zeros.
        stride: of the pixels that are kept.

    Example:
        >>> import torch
        >>> PaddedShortcut(extra_channels=2, stride=2)(torch.ones(1, 1, 2, 2)).flatten()
        tensor([1., 0., 0.])
    """

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.extra_channels, self.stride = extra_channels, stride

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C + extra_channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        kept = features[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, 0, self.extra_channels))

    def extra_repr(self) -> str:
        """For `print`, and for what tells modules apart by their settings."""
        return f"extra_channels={self.extra_channels}, stride={self.stride}"


def _downsample(in_channels: int, out_channels: int, stride: int, projection: bool) -> nn.Module | None:
    """What brings a block's input to the shape of its output; None where it has that shape."""
    if stride == 1 and in_channels == out_channels:
        return None
    if not projection:
        return PaddedShortcut(out_channels - in_channels, stride)
    shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))
