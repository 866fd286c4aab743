"""Runs the trials of a study: decompose, measure the errors, evaluate, fine-tune, evaluate again."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import tdcompress as td
from examples.paper.chain import Features, batch_size, cut, folded, run
from examples.paper.data import Split, Splits
from examples.paper.grid import Trial, trials
from examples.paper.presets import Preset
from examples.paper.store import Store
from examples.paper.training import Performance, evaluate, train
from tdcompress.metrics import FeatureMean, get_metrics, weight_errors

ERRORS = (
    "absolute_weights",
    "relative_weights",
    "scaled_weights",
    "absolute_features",
    "relative_features",
    "scaled_features",
)
_WIDTH = 64  # the first convolutions of the paper's networks make so many channels of one


def run_trials(preset: Preset, model: nn.Sequential, splits: Splits, store: Store, progress: bool = True) -> None:
    """Run the trials that the store does not have yet, and put them there.

    Args:
        preset: the study; its layers are names, not globs.
        model: the trained network, a chain of children, in evaluation mode. It is not changed.
        splits: the data, on the network's device.
        store: where the results go.
        progress: show a bar on standard error.

    Raises:
        CompressionError: a layer cannot be decomposed as asked; what was measured before is in the store.
    """
    every = list(trials(preset))
    missing = [trial for trial in every if trial not in store]
    images = feature_images(splits.train, preset.images, preset.seed)
    with tqdm(total=len(every), initial=len(every) - len(missing), unit="trial", disable=not progress) as bar:
        for layer, of_layer in groupby(missing, key=lambda trial: trial.layer):
            bar.set_description_str(f"{layer}: activations")
            bench = Bench(model, layer, splits, images)
            for _, alike in groupby(of_layer, key=lambda trial: trial.compression):
                for trial, row in _measured(preset, bench, list(alike), splits, bar):
                    store.append(trial, row)
                    bar.update()


def feature_images(train_split: Split, count: int | None, seed: int) -> Tensor:
    """The training images that feature errors are means over: `count` random ones, all for None."""
    if count is None or count >= len(train_split):
        return train_split.images
    order = torch.randperm(len(train_split), generator=torch.Generator().manual_seed(seed))
    return train_split.images[order[:count].to(train_split.images.device)]


@dataclass(frozen=True)
class Compressed:
    """A network with one layer factorized, and what is known of it before fine-tuning."""

    model: nn.Module
    row: dict[str, Any]


class Bench:
    """What all trials of one layer share: what comes out of the network before the layer, computed once.

    Args:
        model: the original network.
        layer: the layer's name.
        splits: the data.
        images: what feature errors are means over, (N, C, H, W).
    """

    def __init__(self, model: nn.Module, layer: str, splits: Splits, images: Tensor) -> None:
        self.model = model
        self.layer = layer
        before, _ = cut(model, layer)
        self.features = Features(model, layer, images)
        self.activations = {
            name: Split(run(before, split.images), split.labels)
            for name, split in (("validation", splits.validation), ("test", splits.test))
        }

    def errors(self, compressed: nn.Module) -> dict[str, float]:
        """The six approximation errors of the layer, as `td.approximation_errors` has them."""
        original, approximation = (network.get_submodule(self.layer) for network in (self.model, compressed))
        metrics = get_metrics(ERRORS)
        mean = FeatureMean([metric for metric in metrics if metric.on == "features"])
        with torch.no_grad():
            for inputs, outputs in self.features:
                mean.update(outputs, approximation(inputs))
        return {**weight_errors(original, approximation, metrics), **mean.compute()}

    def performance(self, compressed: nn.Module) -> dict[str, float]:
        """Classification error and cross-entropy of a network that differs from the layer on."""
        _, after = cut(compressed, self.layer)
        tail = folded(after)
        return columns(
            {
                name: evaluate(tail, split.images, split.labels, batch_size=batch_size(split.images))
                for name, split in self.activations.items()
            }
        )


def whole_performance(model: nn.Sequential, splits: Splits) -> dict[str, float]:
    """Classification error and cross-entropy of a whole network on the validation and the test part."""
    chain = folded(model)
    parts = {"validation": splits.validation, "test": splits.test}
    return columns(
        {
            name: evaluate(chain, split.images, split.labels, batch_size=batch_size(split.images, width=_WIDTH))
            for name, split in parts.items()
        }
    )


def columns(performances: dict[str, Performance]) -> dict[str, float]:
    """The columns `{part}_error` and `{part}_cross_entropy` of a table of results."""
    return {
        f"{part}_{measure}": getattr(performance, measure)
        for part, performance in performances.items()
        for measure in ("error", "cross_entropy")
    }


def compress(preset: Preset, bench: Bench, trial: Trial) -> Compressed:
    """Decompose, measure the errors, and evaluate without fine-tuning."""
    start = time.perf_counter()
    paper = preset.ranks == "paper"
    model = td.decompose(
        bench.model,
        trial.layer,
        trial.method,
        None if paper else trial.ratio,
        rank=preset.published.rank(trial.layer, trial.method, trial.ratio) if paper else None,
        solver=preset.solver_of(trial.method),
        seed=preset.seed + trial.run,
    )
    decomposed = time.perf_counter()
    layer = model.get_submodule(trial.layer)
    found = {"rank": "x".join(map(str, layer.ranks)), "kept": 1 - layer.ratio, "sweeps": layer.solution.sweeps}
    measured = {**bench.errors(model), **bench.performance(model)}
    seconds = {"decompose_seconds": decomposed - start, "evaluate_seconds": time.perf_counter() - decomposed}
    return Compressed(model, {**found, **measured, **seconds})


def fine_tune(preset: Preset, compressed: Compressed, splits: Splits, run: int) -> dict[str, float]:
    """Train a copy of the compressed network; the columns of its performance begin with `finetuned_`."""
    assert preset.fine_tuning is not None
    start = time.perf_counter()
    model = copy.deepcopy(compressed.model)
    train(model, splits, preset.fine_tuning, preset.seed + run)
    row = {f"finetuned_{name}": value for name, value in whole_performance(model, splits).items()}
    return {**row, "finetune_seconds": time.perf_counter() - start}


def _measured(
    preset: Preset, bench: Bench, alike: list[Trial], splits: Splits, bar: tqdm[Any]
) -> Iterable[tuple[Trial, dict[str, Any]]]:
    """The rows of trials that share one decomposition."""
    bar.set_description_str(str(alike[0]))
    compressed = compress(preset, bench, alike[0])
    for trial in alike:
        row = compressed.row
        if preset.fine_tuning is not None:
            bar.set_description_str(f"{trial}: fine-tuning")
            row = {**row, **fine_tune(preset, compressed, splits, trial.run)}
        yield trial, row
