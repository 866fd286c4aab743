"""What a fine-tuning makes small, beside the cross entropy of the labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tdcompress as td
from examples.paper.evaluation import cross_entropy
from tdcompress.layers import FactorizedConv


class Distilled:
    """How far a network's outputs are from those of another one: `td.distillation_loss`, at a temperature of 4.

    Args:
        original: the other one, in evaluation mode.
        labels: add the cross entropy of the labels, and halve the sum; otherwise labels are not looked at.
        autocast: run the original in bfloat16 where PyTorch's autocast does.

    Example:
        >>> original = nn.Linear(4, 3)
        >>> images, labels = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
        >>> Distilled(original, labels=False)(images, original(images), labels).abs() < 1e-5
        tensor(True)
    """

    def __init__(self, original: nn.Module, labels: bool, autocast: bool = False) -> None:
        self._original, self._labels, self._autocast = original, labels, autocast

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """See `cross_entropy` for the shapes."""
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, self._autocast):
            wanted = self._original(images)
        loss = td.distillation_loss(logits, wanted, temperature=4.0, logits=True)
        return (loss + cross_entropy(logits, labels)) / 2 if self._labels else loss


class Decayed:
    """Cross entropy, and weight decay on the weights that factors stand for instead of on the factors (Khodak 2021).

    `decay / 2 · (Σ ‖W‖² + Σ ‖p‖²)` over the factorized layers' own weights W and all other parameters p, which is what
    weight decay was for the layers before they were factorized.

    Args:
        model: what is trained.
        decay: weight decay as of an optimizer; that one's must be 0.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, FactorizedConv)]
        factors = {id(stage.weight) for layer in self._layers for stage in layer.weighted}
        self._others = [parameter for parameter in model.parameters() if id(parameter) not in factors]
        self._decay = decay

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """See `cross_entropy` for the shapes."""
        weights = [layer.weight for layer in self._layers] + self._others
        squares = torch.stack([weight.float().square().sum() for weight in weights])
        return cross_entropy(logits, labels) + self._decay / 2 * squares.sum()
