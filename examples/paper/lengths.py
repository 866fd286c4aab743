"""How long the factors of a layer are: the same layer with its length spread evenly, or all of it in the last stage."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv

LENGTHS = ("balanced", "raw")
_SWEEPS = 100  # each halves, at least, what two neighbours differ by


def rescale(layer: FactorizedConv, lengths: str) -> None:
    """Rescale the channels between a layer's stages in place; the layer stays the same up to rounding.

    A channel may be multiplied by any number where one stage writes it, if it is divided by it where the next one reads
    it. Of CP these are the lengths of the columns of its factors.

    Args:
        layer: of plain convolutions.
        lengths: "balanced", every channel as long where it is written as where it is read, between all neighbours; or
            "raw", of length 1 where it is written, so that the last stage has all the rest.

    Raises:
        CompressionError: unknown lengths, or a stage is no plain convolution.

    Example:
        >>> import tdcompress as td
        >>> layer = td.CPConv.from_conv(nn.Conv2d(8, 8, 3), rank=4)
        >>> before = layer.weight
        >>> rescale(layer, "raw")
        >>> [round(length, 4) for length in layer[0].weight.flatten(1).norm(dim=1).tolist()]
        [1.0, 1.0, 1.0, 1.0]
        >>> torch.allclose(layer.weight, before, atol=1e-6)
        True
    """
    stages = list(layer)
    if lengths not in LENGTHS:
        raise CompressionError(f"unknown lengths {lengths!r}; choose one of {', '.join(LENGTHS)}")
    if not all(type(stage) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) for stage in stages):
        raise CompressionError(f"the stages of a {type(layer).__name__} are no plain convolutions; leave {lengths} out")
    with torch.no_grad():
        for _ in range(_SWEEPS if lengths == "balanced" else 1):
            for writer, reader in pairwise(stages):
                written, read = _written(writer), _read(reader)
                factor = (read / written).sqrt() if lengths == "balanced" else 1 / written
                factor = torch.where((written > 0) & (read > 0), factor, 1.0)
                writer.weight.copy_((writer.weight.flatten(1) * factor[:, None]).view_as(writer.weight))
                grouped = _grouped(reader)
                apart = (grouped / factor.view(grouped.shape[0], 1, -1, 1)).reshape(reader.weight.shape)
                reader.weight.copy_(apart)


def _written(stage: nn.Module) -> Tensor:
    """The length of every channel that a stage writes, (out,)."""
    return stage.get_parameter("weight").flatten(1).norm(dim=1)


def _read(stage: nn.Module) -> Tensor:
    """The length of every channel that a stage reads, (in,)."""
    return _grouped(stage).norm(dim=(1, 3)).flatten()


def _grouped(stage: nn.Module) -> Tensor:
    """A stage's weight as (groups, out / groups, in / groups, positions)."""
    weight, groups = stage.get_parameter("weight"), int(getattr(stage, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
