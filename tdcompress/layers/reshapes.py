"""What stands between the stages of a stack that work on slices alike: modules that only rearrange."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tdcompress.errors import CompressionError


@dataclass(frozen=True)
class Regrouping:
    """What a `Regroup` does.

    Attributes:
        grid: sizes of the axes, those that arrive folded first.
        order: which axis comes at each place of the result, those that leave folded first.
        arrive: how many axes arrive folded.
        leave: how many axes leave folded.
        spatial: how many spatial axes an image has; None for features.
        has_bias: whether one is added to the channels at the end.
    """

    grid: tuple[int, ...]
    order: tuple[int, ...]
    arrive: int = 0
    leave: int = 0
    spatial: int | None = None
    has_bias: bool = False

    def with_bias(self, has_bias: bool) -> Regrouping:
        """The same with or without a bias."""
        return replace(self, has_bias=has_bias)

    def build(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Regroup:
        """The module."""
        return Regroup(
            self.grid,
            self.order,
            arrive=self.arrive,
            leave=self.leave,
            spatial=self.spatial,
            bias=self.has_bias,
            device=device,
            dtype=dtype,
        )

    def of_features(self, features: Tensor) -> Tensor:
        """Features regrouped: (…, channels), with an axis before the channels where something is folded."""
        lead = features.shape[: features.ndim - (2 if self.arrive else 1)]
        places = [len(lead) + axis for axis in self.order]
        grid = features.reshape(*lead, *self.grid).permute(*range(len(lead)), *places)
        grid = grid.flatten(len(lead) + self.leave)
        return grid.flatten(len(lead), -2) if self.leave else grid

    def of_images(self, images: Tensor) -> Tensor:
        """Images regrouped: (samples, channels, *size), with what is folded in the samples."""
        count, last = images.ndim - 2, images.shape[1] > 1 and images.stride(1) == 1  # channels last stay so
        grid = images.movedim(1, -1)
        grid = grid.reshape(-1, *self.grid[: self.arrive], *images.shape[2:], *self.grid[self.arrive :])
        size = range(1 + self.arrive, 1 + self.arrive + count)
        places = [1 + axis if axis < self.arrive else 1 + axis + count for axis in self.order]
        folded, channels = places[: self.leave], places[self.leave :]
        if last:
            grid = grid.permute(0, *folded, *size, *channels).flatten(-len(channels))
            return grid.flatten(0, self.leave).movedim(-1, 1)
        grid = grid.permute(0, *folded, *channels, *size)
        return grid.flatten(1 + self.leave, self.leave + len(channels)).flatten(0, self.leave)


class Regroup(nn.Module):
    """Read channels as a grid, permute its axes, and fold some of them out of the channels or back.

    A stage that follows sees only the axes that are left among the channels, and treats all that are folded alike.
    Features, (…, channels), have one axis for what is folded before the channels; images, (samples, channels, *size),
    have it in the samples, which are the slower index.

    Args:
        grid: sizes of the axes, those that arrive folded first.
        order: which axis comes at each place of the result, those that leave folded first.
        arrive: how many axes arrive folded.
        leave: how many axes leave folded.
        spatial: how many spatial axes an image has; None for features.
        bias: whether one is added to the channels at the end.
        device: where the bias is made.
        dtype: its type.

    >>> fold = Regroup((2, 3, 4), (1, 0, 2), leave=1)
    >>> fold(torch.zeros(5, 24)).shape
    torch.Size([5, 3, 8])
    >>> unfold = Regroup((3, 2, 4), (1, 0, 2), arrive=1)
    >>> unfold(fold(torch.arange(24.0)[None])).equal(torch.arange(24.0)[None])
    True
    >>> Regroup((2, 3, 4), (1, 0, 2), leave=1, spatial=2)(torch.zeros(5, 24, 7, 7)).shape
    torch.Size([15, 8, 7, 7])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        grid: Sequence[int],
        order: Sequence[int],
        *,
        arrive: int = 0,
        leave: int = 0,
        spatial: int | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.regrouping = Regrouping(tuple(grid), tuple(order), arrive, leave, spatial, bias)
        channels = math.prod(grid[axis] for axis in order[leave:])
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(channels, device=device, dtype=dtype)) if bias else None
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Rearrange features or images, as they come from the stage before."""
        spatial = self.regrouping.spatial
        if spatial is None:
            output = self.regrouping.of_features(inputs)
            return output if self.bias is None else output + self.bias.to(output.dtype)
        if inputs.ndim != spatial + 2:
            raise CompressionError(
                f"this layer takes batches with {spatial} spatial axes, and got a tensor of shape "
                f"{tuple(inputs.shape)}; add a batch axis, inputs[None]."
            )
        output = self.regrouping.of_images(inputs)
        return output if self.bias is None else output + self.bias.to(output.dtype).reshape(-1, *[1] * spatial)

    def extra_repr(self) -> str:
        """The grid and what becomes of it."""
        how = self.regrouping
        shown = f"{how.grid} → {tuple(how.grid[axis] for axis in how.order)}, order={how.order}, "
        shown += f"arrive={how.arrive}, leave={how.leave}"
        return shown + (", bias=True" if self.bias is not None else "")
