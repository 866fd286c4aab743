"""Training and evaluation of the study's networks.

A fine-tuning is `train` with a fine-tuning recipe; see `RECIPES`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from examples.paper.augmentation import augment, draw
from examples.paper.data import Split, Splits
from examples.paper.recipes import RECIPES, Recipe
from examples.paper.steps import Step, training_step
from tdcompress.errors import CompressionError
from tdcompress.metrics import evaluating

__all__ = ["RECIPES", "Epoch", "Performance", "Recipe", "TrainingHistory", "evaluate", "train"]


@dataclass(frozen=True)
class Performance:
    """How well a network classifies.

    Attributes:
        error: fraction of images whose most likely class is a wrong one, in [0, 1].
        cross_entropy: mean over images of −log p(label), in nats.
    """

    error: float
    cross_entropy: float

    @property
    def accuracy(self) -> float:
        """1 − error."""
        return 1.0 - self.error


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training part gave.

    Attributes:
        train_loss: mean cross entropy of the training images, each at the time of its step, in nats.
        validation: on the validation part, after the pass.
        learning_rate: at the beginning of the pass.
        seconds: wall time, validation included.
    """

    train_loss: float
    validation: Performance
    learning_rate: float
    seconds: float


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


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500, autocast: bool = False
) -> Performance:
    """Classification error and cross entropy in evaluation mode; the network is left as it was.

    Args:
        model: gives logits (N, classes) for images (N, C, H, W).
        images: (N, C, H, W), standardised; moved to the model's device a batch at a time.
        labels: (N,), int64.
        batch_size: images at a time.
        autocast: compute in bfloat16 where PyTorch's autocast does; otherwise in the model's own precision.

    Raises:
        CompressionError: there are no images.
    """
    if len(labels) == 0:
        raise CompressionError("there are no images to evaluate on; give at least one")
    device = _device(model)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    with (
        evaluating(model),
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, autocast),
    ):
        for batch, expected in batches:
            logits, expected = model(batch.to(device)).float(), expected.to(device)
            wrong += (logits.argmax(dim=1) != expected).sum()
            loss += F.cross_entropy(logits, expected, reduction="sum").double()
    return Performance(wrong.item() / len(labels), loss.item() / len(labels))


def train(model: nn.Module, splits: Splits, recipe: Recipe, seed: int = 0, progress: bool = False) -> TrainingHistory:
    """Fits the network to the training part, in place, and keeps the weights of its best epoch.

    The best epoch has the lowest classification error on the validation part, and of several such the lowest
    cross entropy. The test part is not looked at. The order of the images, the crops and the flips depend on
    `seed` alone; PyTorch's global generators are not moved, unless by the network itself, as with dropout.
    The same seed, machine and number of threads give the same weights on the CPU.

    Args:
        model: gives logits (N, classes) for images (N, C, H, W); trained on the device that it is on, and
            left in evaluation mode.
        splits: the data; moved to the model's device.
        recipe: how to train.
        seed: decides about everything random.
        progress: show a bar on standard error.

    Returns:
        The losses and validation results of all epochs.

    Raises:
        CompressionError: the loss is no longer finite.
    """
    splits = splits.to(_device(model))
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, recipe)
    generator = torch.Generator().manual_seed(seed)
    step = training_step(model, optimizer, recipe, _device(model))
    steps = math.ceil(min(len(splits.train), recipe.samples or len(splits.train)) / recipe.batch_size)
    epochs: list[Epoch] = []
    best, best_state = 0, {}
    with tqdm(total=recipe.epochs * steps, unit="step", disable=not progress) as bar:
        for number in range(recipe.epochs):
            start = time.perf_counter()
            rates = [recipe.learning_rate_at(number + done / steps) for done in range(steps)]
            bar.set_description(f"training, epoch {number + 1}/{recipe.epochs}")
            batches = _counted(_batches(splits, recipe, generator), bar)
            loss = _train_epoch(model, optimizer, step, batches, rates)
            validation = evaluate(model, splits.validation.images, splits.validation.labels, autocast=recipe.autocast)
            bar.set_postfix(validation_error=f"{validation.error:.4f}")
            epochs.append(Epoch(loss, validation, rates[0], time.perf_counter() - start))
            if number == 0 or _order(validation) < _order(epochs[best].validation):
                best, best_state = number, {name: value.clone() for name, value in model.state_dict().items()}
            if recipe.patience is not None and number - best >= recipe.patience:
                break
    model.load_state_dict(best_state)
    model.to(memory_format=torch.contiguous_format).eval()
    return TrainingHistory(tuple(epochs), best)


def _batches(splits: Splits, recipe: Recipe, generator: torch.Generator) -> Iterator[Split]:
    """An epoch's images in random order and augmented; everything random is drawn at once."""
    device = splits.train.labels.device
    order = torch.randperm(len(splits.train), generator=generator)[: recipe.samples].to(device)
    draws = draw(len(order), generator, device, crop_padding=recipe.crop_padding, flip=recipe.flip)
    for start in range(0, len(order), recipe.batch_size):
        part = slice(start, start + recipe.batch_size)
        batch = splits.train.take(order[part])
        images = batch.images
        if recipe.crop_padding or recipe.flip:
            images = augment(images, splits.black, draws.take(part), recipe.crop_padding)
        if recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        yield Split(images, batch.labels)


def _counted(batches: Iterable[Split], bar: tqdm[Any]) -> Iterator[Split]:
    """The batches; the bar moves on as each has been used."""
    for batch in batches:
        yield batch
        bar.update()


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Step,
    batches: Iterable[Split],
    rates: Sequence[float],  # one learning rate a batch
) -> float:
    """One step a batch; the mean loss."""
    model.train()
    total = torch.zeros((), dtype=torch.float64, device=_device(model))
    images_seen = 0
    for rate, batch in zip(rates, batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        total += step(batch.images, batch.labels).double() * len(batch)
        images_seen += len(batch)
    mean = total.item() / images_seen
    if not math.isfinite(mean):
        raise CompressionError(f"training diverged: the mean loss is {mean}; lower the recipe's learning_rate")
    return mean


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


def _device(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
