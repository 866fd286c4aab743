"""Ways to fine-tune a compressed network, by name: what is trained, towards what, at which rates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from examples.paper.data import Split, Splits
from examples.paper.lengths import rescale
from examples.paper.objectives import Decayed, Distilled
from examples.paper.recipes import Recipe
from examples.paper.steps import Objective, labelled
from examples.paper.training import train
from examples.paper.work import Source
from tdcompress.layers import FactorizedConv
from tdcompress.metrics import evaluating

LAST_RATE = 1e-4  # at which the paper's training of GaripovNet ends, and its fine-tuning runs
_RATES = (1e-4, 1e-3, 1e-2)
_HIGHEST = 2e-2  # of one cycle
_ADAM = 1e-3
_DECAY = 5e-4
_AT_A_TIME = 500  # images that the original answers


@dataclass(frozen=True)
class Strategy:
    """A way to fine-tune.

    Attributes:
        recipes: each is tried, and the one with the best validation result is kept.
        trained: "all"; "norms and head", BatchNorm and the last linear layer; or "layer first", the factors alone in
            the first half of the epochs and all parameters in the second.
        target: "labels"; "outputs", those of the uncompressed network, without any label; or "both".
        decay: of the squared norm of the layer's own weight, and of every other parameter; 0 leaves it to the recipe,
            which takes the factors' norms.
        lengths: of the factors before the training, "balanced" or "raw"; None as the decomposition gave them.
    """

    recipes: tuple[Recipe, ...]
    trained: str = "all"
    target: str = "labels"
    decay: float = 0.0
    lengths: str | None = None


def _sgd(base: Recipe, rate: float = LAST_RATE) -> Recipe:
    """The base's epochs, images and precision, with plain SGD at one rate."""
    plain: dict[str, Any] = {"nesterov": False, "weight_decay": 0.0, "schedule": "steps", "milestones": ()}
    return replace(base, learning_rate=rate, optimizer="sgd", momentum=0.9, **plain)


def _cycle(base: Recipe, **changes: Any) -> Recipe:
    return replace(_sgd(base, _HIGHEST), schedule="one-cycle", nesterov=True, **changes)


def _one(recipe: Callable[[Recipe], Recipe], base: Recipe, **changes: object) -> Strategy:
    return Strategy((recipe(base),), **changes)  # type: ignore[arg-type]


# What makes each of a recipe, which says how many images are seen how often.
STRATEGIES: Mapping[str, Callable[[Recipe], Strategy]] = {
    "paper": partial(_one, _sgd),
    "rate": lambda base: Strategy(tuple(_sgd(base, rate) for rate in _RATES)),
    "one-cycle": partial(_one, _cycle),
    "adam": lambda base: Strategy((replace(_sgd(base, _ADAM), optimizer="adam"),)),
    "norms-head": partial(_one, _cycle, trained="norms and head"),
    "distill-labels": partial(_one, _cycle, target="both"),
    "distill": partial(_one, _cycle, target="outputs"),
    "decay-factors": partial(_one, partial(_cycle, weight_decay=_DECAY)),
    "decay-weight": partial(_one, _cycle, decay=_DECAY),
    "balanced": partial(_one, _cycle, lengths="balanced"),
    "raw": partial(_one, _cycle, lengths="raw"),
    "layer-first": partial(_one, _cycle, trained="layer first"),
}


@dataclass(frozen=True, eq=False)
class Tuning:
    """Fine-tunes a compressed network by a strategy.

    Attributes:
        strategy: how.
        source: on what.
        original: the network before any compression, in evaluation mode.
        progress: show a bar for each training.
    """

    strategy: Strategy
    source: Source
    original: nn.Module
    progress: bool = False

    @property
    def version(self) -> str:
        """What its results depend on, besides the data and the original."""
        return repr(self.strategy)

    def __call__(self, model: nn.Module, seed: int) -> nn.Module:
        """The fine-tuned network, with the weights of the best epoch of the best recipe."""
        if self.strategy.lengths is not None:
            for layer in _factorized(model):
                rescale(layer, self.strategy.lengths)
        splits = self.source.splits()
        if self.strategy.target == "outputs":
            splits = _unlabelled(splits, self.original)
        last = len(self.strategy.recipes) - 1
        tried = [
            self._trained(model if place == last else copy.deepcopy(model), splits, recipe, seed)
            for place, recipe in enumerate(self.strategy.recipes)
        ]
        best = min(tried, key=lambda one: one[0])[1]
        return best.requires_grad_(True)

    def _trained(
        self, model: nn.Module, splits: Splits, recipe: Recipe, seed: int
    ) -> tuple[tuple[float, float], nn.Module]:
        """A network and how it does on the validation part."""
        objective = self._objective(model, recipe)
        if self.strategy.trained == "layer first":
            first = max(1, recipe.epochs // 2)
            _train_only(model, {id(p) for layer in _factorized(model) for p in layer.parameters()})
            train(model, splits, replace(recipe, epochs=first), seed, self.progress, objective=objective)
            model.requires_grad_(True)
            recipe = replace(recipe, epochs=max(1, recipe.epochs - first))
        if self.strategy.trained == "norms and head":
            _train_only(model, {id(p) for module in _norms_and_head(model) for p in module.parameters()})
        reached = train(model, splits, recipe, seed, self.progress, objective=objective).best.validation
        return (reached.error, reached.cross_entropy), model

    def _objective(self, model: nn.Module, recipe: Recipe) -> Objective:
        if self.strategy.target != "labels":
            original = copy.deepcopy(self.original).eval()
            if recipe.channels_last:
                original = original.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return Distilled(original, labels=self.strategy.target == "both", autocast=recipe.autocast)
        return Decayed(model, self.strategy.decay) if self.strategy.decay else labelled


def _factorized(model: nn.Module) -> list[FactorizedConv]:
    return [module for module in model.modules() if isinstance(module, FactorizedConv)]


def _norms_and_head(model: nn.Module) -> list[nn.Module]:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return [*norms, [module for module in model.modules() if isinstance(module, nn.Linear)][-1]]


def _train_only(model: nn.Module, chosen: set[int]) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def _unlabelled(splits: Splits, original: nn.Module) -> Splits:
    """The data without its labels: those of the validation part are what the original answers, others are none."""
    part = splits.validation
    with evaluating(original), torch.no_grad():
        answers = torch.cat([original(images).argmax(dim=-1) for images in part.images.split(_AT_A_TIME)])
    none = torch.zeros_like(splits.train.labels)
    return replace(splits, train=Split(splits.train.images, none), validation=Split(part.images, answers))
