"""Trials: one layer, or all hidden ones, of a trained perceptron replaced by an approximation, and what that costs."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.paper.data import Splits, digits, fashion_mnist
from examples.paper.models import seeded
from examples.paper.recipes import Recipe
from examples.paper.train import load_checkpoint, save_checkpoint
from examples.paper.training import evaluate, train
from examples.reshaping.ways import WAYS, Approximation
from tdcompress.metrics.registry import METRICS

RATIOS = (0.5, 0.75, 0.9, 0.95)  # the shares of the weights to remove
HIDDEN = "hidden layers"  # what a trial with all of them is called in the table


@dataclass(frozen=True)
class Preset:
    """A perceptron and its data.

    Attributes:
        splits: from a folder, or None for the usual place, to the data.
        sizes: inputs, widths of the hidden layers, classes.
        recipe: how it is trained.
    """

    splits: Callable[[str | None], Splits]
    sizes: tuple[int, ...]
    recipe: Recipe

    def network(self, seed: int) -> nn.Sequential:
        """An untrained one."""
        return seeded(lambda: perceptron(self.sizes), seed)

    def trained(self, run: int, splits: Splits, folder: Path) -> nn.Sequential:
        """The network of a run, in evaluation mode; from the folder if it was trained before."""
        model, path = self.network(run), folder / f"weights-{run}.safetensors"
        if path.exists():
            load_checkpoint(model, path)
        else:
            train(model, splits, self.recipe, seed=run, progress=sys.stderr.isatty())
            save_checkpoint(model, path, {"run": str(run)})
        return model.eval()


PRESETS = {
    "fashion-mnist": Preset(
        lambda folder: fashion_mnist(folder),
        (784, 512, 256, 10),
        Recipe(learning_rate=1e-3, epochs=12, optimizer="adam", schedule="one-cycle"),
    ),
    "digits": Preset(
        lambda folder: digits(),
        (64, 128, 64, 10),
        Recipe(learning_rate=3e-3, epochs=20, optimizer="adam", schedule="one-cycle", batch_size=32),
    ),
}


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers, `fc1` to the last one, with ReLU between them.

    >>> perceptron((64, 32, 10))(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (before, after) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{number}"] = nn.Linear(before, after)
        if number < len(sizes) - 1:
            layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)


@dataclass(frozen=True)
class Trial:
    """One approximation, its errors and what the network does with it.

    Attributes:
        run: the seed of the network.
        layer: the layer's name, or `HIDDEN`.
        method: the way.
        ratio: the share of the weights to remove.
        test_error: of the network with the approximation in the layer's place.
        test_cross_entropy: likewise, in nats.
        parameters: of the approximation, as a share of the dense weight's.
        multiply_adds: of the approximation, as a share of the dense weight's.
        rank: of the approximation.
        shape: how the matrix was read.
        errors: the approximation errors by name; nothing for `HIDDEN`.
    """

    run: int
    layer: str
    method: str
    ratio: float
    test_error: float
    test_cross_entropy: float
    parameters: float
    multiply_adds: float
    rank: str
    shape: str
    errors: dict[str, float]

    def row(self) -> dict[str, object]:
        """As a row of the table."""
        return {name: value for name, value in vars(self).items() if name != "errors"} | self.errors


def trials(
    run: int, model: nn.Sequential, splits: Splits, ratios: Sequence[float], ways: Sequence[str]
) -> Iterator[Trial]:
    """All trials with one network: every layer by itself, then all hidden ones together.

    A way that has no rank within the budget of a layer has no trial there.

    Args:
        run: the seed of the network.
        model: trained.
        splits: its data; errors of features are taken on the validation part.
        ratios: shares of the weights to remove.
        ways: names in `WAYS`.
    """
    linear = {name: layer for name, layer in model.named_children() if isinstance(layer, nn.Linear)}
    names = list(linear)
    inputs = inputs_of(model, names, splits.validation.images[:1000])
    for way in ways:
        found = {name: _approximations(model, name, way, ratios) for name in names}
        for place, ratio in enumerate(ratios):
            at_ratio = {name: found[name][place] for name in names}
            for name, one in at_ratio.items():
                if one is not None:
                    errors = _errors(linear[name], inputs[name], one.matrix)
                    yield _trial((run, name, way, ratio), model, splits, {name: one}, errors)
            hidden = {name: one for name, one in at_ratio.items() if name != names[-1] and one is not None}
            if len(hidden) == len(names) - 1:
                yield _trial((run, HIDDEN, way, ratio), model, splits, hidden, {})


def _approximations(model: nn.Module, name: str, way: str, ratios: Sequence[float]) -> list[Approximation | None]:
    weight = model.get_parameter(f"{name}.weight").detach()
    return WAYS[way](weight, [int((1 - ratio) * weight.numel() + 1e-9) for ratio in ratios])


def _trial(
    key: tuple[int, str, str, float],
    model: nn.Module,
    splits: Splits,
    found: dict[str, Approximation],
    errors: dict[str, float],
) -> Trial:
    changed = copy.deepcopy(model)
    for name, one in found.items():
        changed.get_parameter(f"{name}.weight").data.copy_(one.matrix)
    performance = evaluate(changed, splits.test.images, splits.test.labels)
    dense = sum(one.matrix.numel() for one in found.values())
    return Trial(
        *key,
        test_error=performance.error,
        test_cross_entropy=performance.cross_entropy,
        parameters=sum(one.parameters for one in found.values()) / dense,
        multiply_adds=sum(one.multiply_adds for one in found.values()) / dense,
        rank="; ".join(one.rank for one in found.values()),
        shape="; ".join(one.shape for one in found.values()),
        errors=errors,
    )


def inputs_of(model: nn.Sequential, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """What each layer gets, by name."""
    found, features = {}, images
    with torch.no_grad():
        for name, layer in model.named_children():
            if name in names:
                found[name] = features
            features = layer(features)
    return found


def _errors(layer: nn.Linear, inputs: Tensor, matrix: Tensor) -> dict[str, float]:
    """The library's metrics, of the weight and of what the layer puts out."""
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    features = inputs.double() @ weight.T + bias, inputs.double() @ matrix.double().T + bias
    pairs = {"weights": (weight, matrix.double()), "features": features}
    return {
        name: float(torch.as_tensor(metric.function(*pairs[metric.on])).mean())
        for name, metric in METRICS.items()
        if metric.on in pairs
    }
