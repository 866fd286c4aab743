"""A network that this repository holds trained, and its data, for examples."""

from __future__ import annotations

from torch import nn

from examples.paper.data import Splits
from examples.paper.presets import PRESETS
from examples.paper.train import load_checkpoint
from tdcompress.errors import CompressionError


def trained_network(name: str = "digits-resnet") -> nn.Module:
    """A network with its trained weights, in evaluation mode.

    Args:
        name: `"digits-resnet"`, a residual network of 20 layers for the digits that come with scikit-learn, or
            `"garipov-fmnist"`, GaripovNet for Fashion-MNIST.

    Raises:
        CompressionError: the repository has no weights for this name.
    """
    held = {known: preset.checkpoint for known, preset in PRESETS.items() if preset.checkpoint is not None}
    if name not in held:
        raise CompressionError(f"this repository has no weights for {name!r}; it has for {', '.join(sorted(held))}.")
    model = PRESETS[name].parts.build()
    load_checkpoint(model, held[name])
    return model.eval()


def trained(name: str = "digits-resnet", data: str | None = None) -> tuple[nn.Module, Splits]:
    """The same, and the data that the network was trained on.

    Args:
        name: as for `trained_network`.
        data: the folder of the data set; by default its usual place.

    Raises:
        CompressionError: see `trained_network`, or the data cannot be read.

    >>> model, digits = trained()
    >>> digits.test.images.shape
    torch.Size([599, 1, 8, 8])
    """
    return trained_network(name), PRESETS[name].parts.load(data)
