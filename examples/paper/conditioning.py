"""How well the factors of a compressed layer are conditioned: what noise on them does, and how steep the loss is."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from examples.paper.evaluation import cross_entropy
from tdcompress.layers import FactorizedConv
from tdcompress.metrics import evaluating

_PROBES = 16


def conditioning(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Columns that say whether a decomposed layer's factors are easy to train; none for a model without any.

    Args:
        model: with one factorized layer; left as it was.
        images: (N, C, H, W).
        labels: (N,).

    Returns:
        `sensitivity`, and for each stage `gradient1`, `gradient2` and so on: the norm of the gradient of the mean cross
        entropy with respect to its weight, in evaluation mode.
    """
    layers = [module for module in model.modules() if isinstance(module, FactorizedConv)]
    if not layers:
        return {}
    stages = [stage.weight for stage in layers[0].weighted]
    with torch.enable_grad(), evaluating(model):
        found = torch.autograd.grad(cross_entropy(model(images), labels), stages)
    gradients = {f"gradient{number}": float(one.norm()) for number, one in enumerate(found, start=1)}
    return {"sensitivity": sensitivity(layers[0]), **gradients}


def sensitivity(layer: FactorizedConv, seed: int = 0) -> float:
    """What the squared error of a layer's weight grows by per unit of noise on its factors, over its own square.

    `Σ_s ‖∂W/∂θ_s‖² / ‖W‖²` over the stages s, which for CP is the sensitivity of Tichavský, Phan & Cichocki (2019). W
    is linear in every θ_s, so ‖∂W/∂θ_s‖² is the mean of ‖W‖² with standard normal numbers in the place of θ_s; it is
    taken over 16 draws.

    Args:
        layer: left as it was.
        seed: of the draws.

    Example:
        >>> import tdcompress as td
        >>> layer = td.CPConv.from_conv(nn.Conv2d(8, 8, 3), rank=4)
        >>> 0.8 < sensitivity(layer) / layer.solution.sensitivity < 1.25
        True
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = copy.deepcopy(layer)
    total = 0.0
    with torch.no_grad():
        for stage in noisy.weighted:
            before = stage.weight.clone()
            for _ in range(_PROBES):
                stage.weight.copy_(torch.randn(before.shape, generator=generator))
                total += float(noisy.weight.double().square().sum()) / _PROBES
            stage.weight.copy_(before)
        return total / float(noisy.weight.double().square().sum())
