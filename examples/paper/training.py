"""Training of the study's networks, which goes on where it was killed.

A fine-tuning is `train` with a fine-tuning recipe; see `RECIPES`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from examples.paper.augmentation import augment, draw
from examples.paper.data import Split, Splits
from examples.paper.evaluation import Performance, device_of, evaluate
from examples.paper.recipes import RECIPES, Recipe
from examples.paper.resuming import Epoch, Keeper, State
from examples.paper.steps import Objective, labelled, training_step
from tdcompress.errors import CompressionError

__all__ = ["RECIPES", "Epoch", "Performance", "Recipe", "TrainingHistory", "evaluate", "train"]


@dataclass(frozen=True)
class TrainingHistory:
    """What a training did.

    Attributes:
        epochs: every epoch, in order.
        best_epoch: index of the one whose weights the network has now.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int

    @property
    def best(self) -> Epoch:
        """The epoch whose weights the network has now."""
        return self.epochs[self.best_epoch]

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)


def train(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    seed: int = 0,
    progress: bool = False,
    keep: str | Path | None = None,
    *,
    objective: Objective = labelled,
) -> TrainingHistory:
    """Fits the network to the training part, in place, and keeps the weights of its best epoch.

    The best epoch has the lowest classification error on the validation part, and of several such the lowest
    cross entropy. The test part is not looked at. The order of the samples, the crops and the flips depend on
    `seed` alone; PyTorch's global generators are not moved, unless by the network itself, as with dropout.
    The same seed, machine and number of threads give the same weights on the CPU, whether it was interrupted or not.

    Args:
        model: gives logits as `evaluate` takes them; trained on the device that it is on, and left in evaluation mode.
        splits: the data; moved to the model's device.
        recipe: how to train.
        seed: decides about everything random.
        progress: show a bar on standard error.
        keep: a file in which the training is kept, about once a minute and after every epoch. Where it is there
            already, the training goes on from it. It stays when the training has ended. It does not know the objective.
        objective: what is made small; by default the cross entropy of the labels.

    Returns:
        The losses and validation results of all epochs.

    Raises:
        CompressionError: the loss is no longer finite, or the file is of another training.
    """
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    about = repr([recipe, seed, splits.name, [(name, tuple(p.shape)) for name, p in model.named_parameters()]])
    keeper = None if keep is None else Keeper(keep, about)
    generator = torch.Generator().manual_seed(seed)
    training = _Training(model, splits.to(device_of(model)), recipe, generator, keeper, objective)
    training.run(progress)
    state = training.state
    model.load_state_dict(state.best_weights)
    model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return TrainingHistory(tuple(state.epochs), state.best)


class _Training:
    """A training, from where it is to its end.

    Args:
        model: what is trained.
        splits: on its device.
        recipe: how.
        generator: everything random is drawn from it.
        keeper: keeps it on disk; None for not at all.
        objective: what is made small.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        recipe: Recipe,
        generator: torch.Generator,
        keeper: Keeper | None,
        objective: Objective,
    ) -> None:
        self._model, self._splits, self._recipe, self._keeper = model, splits, recipe, keeper
        self._optimizer = _optimizer(model, recipe)
        self._generator = generator
        self._steps = math.ceil(min(len(splits.train), recipe.samples or len(splits.train)) / recipe.batch_size)
        kept = None if keeper is None else keeper.load(model, self._optimizer)
        self.state = kept or State(self._generator.get_state())
        self._step = training_step(model, self._optimizer, recipe, device_of(model), objective)

    def run(self, progress: bool) -> None:
        """Train to the end."""
        recipe, state = self._recipe, self.state
        done = len(state.epochs) * self._steps + state.steps
        with tqdm(total=recipe.epochs * self._steps, initial=done, unit="step", disable=not progress) as bar:
            while not self._has_ended():
                bar.set_description(f"training, epoch {len(state.epochs) + 1}/{recipe.epochs}")
                self._epoch(bar)
                bar.set_postfix(validation_error=f"{state.epochs[-1].validation.error:.4f}")
                self._save()

    def _has_ended(self) -> bool:
        state, patience = self.state, self._recipe.patience
        waited = len(state.epochs) - 1 - state.best
        return len(state.epochs) >= self._recipe.epochs or (patience is not None and waited >= patience)

    def _epoch(self, bar: tqdm[Any]) -> None:
        """The rest of the epoch that is under way."""
        state, start, before = self.state, time.perf_counter(), self.state.seconds
        number, total = len(state.epochs), torch.tensor(state.loss, dtype=torch.float64, device=device_of(self._model))
        self._model.train()
        self._generator.set_state(state.drawing)
        for batch in _batches(self._splits, self._recipe, self._generator, first=state.steps):
            rate = self._recipe.learning_rate_at(number + state.steps / self._steps)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            total += self._step(batch.images, batch.labels).double() * len(batch)
            state.seen += len(batch)
            state.steps += 1
            bar.update()
            if self._keeper is not None and self._keeper.due():
                state.loss, state.seconds = total.item(), before + time.perf_counter() - start
                self._save()
        loss = total.item() / state.seen
        if not math.isfinite(loss):
            raise CompressionError(f"training diverged: the mean loss is {loss}; lower the recipe's learning_rate")
        part = self._splits.validation
        validation = evaluate(self._model, part.images, part.labels, autocast=self._recipe.autocast)
        rate, seconds = self._recipe.learning_rate_at(number), before + time.perf_counter() - start
        self._ended(Epoch(loss, validation, rate, seconds))

    def _ended(self, epoch: Epoch) -> None:
        state = self.state
        state.epochs.append(epoch)
        if len(state.epochs) == 1 or _order(epoch.validation) < _order(state.epochs[state.best].validation):
            state.best = len(state.epochs) - 1
            state.best_weights = {name: value.clone() for name, value in self._model.state_dict().items()}
        state.drawing = self._generator.get_state()
        state.steps, state.loss, state.seen, state.seconds = 0, 0.0, 0, 0.0

    def _save(self) -> None:
        if self._keeper is not None:
            self._keeper.save(self._model, self._optimizer, self.state)


def _batches(splits: Splits, recipe: Recipe, generator: torch.Generator, first: int = 0) -> Iterator[Split]:
    """An epoch's samples in random order and augmented, from a batch on; everything random is drawn at once."""
    device = splits.train.labels.device
    order = torch.randperm(len(splits.train), generator=generator)[: recipe.samples].to(device)
    draws = draw(len(order), generator, device, crop_padding=recipe.crop_padding, flip=recipe.flip)
    for start in range(first * recipe.batch_size, len(order), recipe.batch_size):
        part = slice(start, start + recipe.batch_size)
        batch = splits.train.take(order[part])
        images = batch.images
        if recipe.crop_padding or recipe.flip:
            images = augment(images, splits.black, draws.take(part), recipe.crop_padding)
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        yield Split(images, batch.labels)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


def _order(performance: Performance) -> tuple[float, float]:
    return performance.error, performance.cross_entropy
