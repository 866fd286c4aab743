"""A linear layer whose weight lies the other way round, so that it can share that of a layer which multiplies by it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TransposedLinear(nn.Module):
    """`inputs @ weight + bias`, with a weight of (in, out): an `nn.Linear` with a transposed weight.

    A head that is tied to an embedding has one as its first stage, and the embedding's last stage has the same weight.

    Args:
        in_features: of the input, (…, in).
        out_features: of the output, (…, out).
        bias: whether there is one.
        device: where the parameters are made.
        dtype: their type.

    >>> layer, linear = TransposedLinear(3, 5, bias=False), nn.Linear(5, 3, bias=False)
    >>> layer.weight = linear.weight
    >>> x = torch.ones(2, 3)
    >>> torch.equal(layer(x), x @ linear.weight)
    True
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        bound = 1 / math.sqrt(in_features)  # as nn.Linear has it
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """From (…, in) to (…, out)."""
        return F.linear(inputs, self.weight.mT, self.bias)

    def extra_repr(self) -> str:
        """Its sizes, as those of an `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
