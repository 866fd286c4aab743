"""A network that this repository holds trained, and its data, for examples."""

from __future__ import annotations

from torch import nn

from examples.paper.data import Splits
from examples.paper.presets import PRESETS
from examples.paper.train import SETTINGS, load_checkpoint
from tdcompress.errors import CompressionError


def trained(name: str = "digits-resnet", data: str | None = None) -> tuple[nn.Module, Splits]:
    """A network with its trained weights, in evaluation mode, and the data that it was trained on.

    Args:
        name: `"digits-resnet"`, a residual network of 20 layers for the digits that come with scikit-learn, or
            `"garipov-fmnist"`, GaripovNet for Fashion-MNIST.
        data: the folder of the data set; by default its usual place.

    Raises:
        CompressionError: the repository has no weights for this name, or the data cannot be read.

    >>> model, digits = trained()
    >>> digits.test.images.shape
    torch.Size([599, 1, 8, 8])
    """
    held = {known: preset.checkpoint for known, preset in PRESETS.items() if preset.checkpoint is not None}
    if name not in held:
        raise CompressionError(f"this repository has no weights for {name!r}; it has for {', '.join(sorted(held))}.")
    setting = SETTINGS[PRESETS[name].setting]
    model = setting.build()
    load_checkpoint(model, held[name])
    return model.eval(), setting.load(data)
