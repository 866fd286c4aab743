"""A linear layer whose groups of features do not see each other, as the groups of a convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tdcompress.errors import CompressionError


class GroupedLinear(nn.Module):
    """A block-diagonal `nn.Linear`: every group of outputs sees one group of inputs.

    Args:
        in_features: of the input, (…, in).
        out_features: of the output, (…, out).
        groups: blocks, a divisor of both.
        bias: whether there is one.
        device: where the parameters are made.
        dtype: their type.

    Raises:
        CompressionError: the groups do not divide the features.

    >>> layer = GroupedLinear(6, 4, groups=2)
    >>> layer.weight.shape, layer(torch.zeros(5, 7, 6)).shape
    (torch.Size([4, 3]), torch.Size([5, 7, 4]))
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_features % groups or out_features % groups:
            raise CompressionError(f"{groups} groups do not divide {in_features} and {out_features} features.")
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        self.weight = nn.Parameter(torch.empty(out_features, in_features // groups, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        bound = 1 / math.sqrt(in_features // groups)  # as nn.Linear has it
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """From (…, in) to (…, out)."""
        blocks = self.weight.reshape(self.groups, -1, self.in_features // self.groups)
        output = grouped_product(inputs, blocks)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """Its sizes, as those of an `nn.Linear`, and the groups."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, groups={self.groups}, bias={self.bias is not None}"


def grouped_product(inputs: Tensor, blocks: Tensor) -> Tensor:
    """Every group of features times its block.

    Args:
        inputs: (…, groups · in).
        blocks: (groups, out, in).

    Returns:
        (…, groups · out).
    """
    features = inputs.reshape(*inputs.shape[:-1], len(blocks), -1)
    return torch.einsum("...gi,goi->...go", features, blocks).flatten(-2)
