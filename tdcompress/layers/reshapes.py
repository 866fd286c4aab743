"""What stands between the stages of a stack that work on slices alike: modules that only rearrange."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tdcompress.errors import CompressionError


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
        self.grid, self.order, self.arrive, self.leave, self.spatial = tuple(grid), tuple(order), arrive, leave, spatial
        channels = math.prod(self.grid[axis] for axis in self.order[leave:])
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(channels, device=device, dtype=dtype)) if bias else None
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Rearrange features or images, as they come from the stage before."""
        if self.spatial is None:
            return self._features(inputs)
        if inputs.ndim != self.spatial + 2:
            raise CompressionError(
                f"this layer takes batches with {self.spatial} spatial axes, and got a tensor of shape "
                f"{tuple(inputs.shape)}; add a batch axis, inputs[None]."
            )
        return self._images(inputs)

    def _features(self, inputs: Tensor) -> Tensor:
        lead = inputs.shape[: inputs.ndim - (2 if self.arrive else 1)]
        places = [len(lead) + axis for axis in self.order]
        found = inputs.reshape(*lead, *self.grid).permute(*range(len(lead)), *places)
        found = found.flatten(len(lead) + self.leave)
        if self.leave:
            found = found.flatten(len(lead), -2)
        return found if self.bias is None else found + self.bias.to(found.dtype)

    def _images(self, inputs: Tensor) -> Tensor:
        found = inputs.reshape(-1, *self.grid, *inputs.shape[2:])
        size = range(found.ndim - inputs.ndim + 2, found.ndim)
        found = found.permute(0, *(1 + axis for axis in self.order), *size)
        found = found.flatten(1 + self.leave, len(self.order)).flatten(0, self.leave)
        if self.bias is None:
            return found
        return found + self.bias.to(found.dtype).reshape(-1, *[1] * (inputs.ndim - 2))

    def extra_repr(self) -> str:
        """The grid and what becomes of it."""
        shown = f"{self.grid} → {tuple(self.grid[axis] for axis in self.order)}, order={self.order}, "
        shown += f"arrive={self.arrive}, leave={self.leave}"
        return shown + (", bias=True" if self.bias is not None else "")
