"""What the study's engine calls for each trial: evaluation, calibration and fine-tuning of the paper's networks.

Both are objects that other processes can be sent: the data travels as the name of its setting, and is read where it is
needed, once in a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import tdcompress as td
from examples.paper.conditioning import conditioning
from examples.paper.data import Split, Splits
from examples.paper.evaluation import Performance, Scores
from examples.paper.recipes import Recipe
from examples.paper.train import SETTINGS
from examples.paper.training import train
from tdcompress.study import PrefixCache

PARTS = ("validation", "test")  # of the data, on which networks are evaluated
_AT_A_TIME = 100  # images of a calibration
_FEW = 256  # images over which gradients are means


@dataclass(frozen=True)
class Source:
    """A setting's data on a device.

    Attributes:
        setting: the setting's name.
        path: folder or archive; None for the data set's usual place.
        device: where the tensors shall be.
        evaluated: how many random images of the validation part and of the test part are used; None for all.
    """

    setting: str
    path: str | None = None
    device: str = "cpu"
    evaluated: int | None = None

    def splits(self) -> Splits:
        """The data, read once in a process."""
        return _splits(self)

    def feature_images(self, count: int | None, seed: int) -> Tensor:
        """The training images that feature errors are means over: `count` random ones, all for None."""
        return some(self.splits().train, count, seed).images


class Evaluation:
    """What a setting measures, such as classification error and cross-entropy, on parts of the data.

    Args:
        model: the network before any compression; what another has in common with it is computed once.
        source: the data.
        parts: of `PARTS`.
        conditioned: add how well a factorized layer is conditioned, on a few training images; see `conditioning`.
        autocast: compute in bfloat16 where PyTorch's autocast does.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        parts: Sequence[str] = PARTS,
        *,
        conditioned: bool = False,
        autocast: bool = False,
    ) -> None:
        self._model, self._source, self._parts = model, source, parts
        self._conditioned, self._autocast = conditioned, autocast
        self._caches: dict[str, PrefixCache] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without what is kept for speed, which every process makes for itself."""
        return {**vars(self), "_caches": {}}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The columns `{part}_{measure}`: `test_error`, in [0, 1], `test_cross_entropy`, in nats, and so on."""
        splits = self._source.splits()
        found: dict[str, float] = {}
        for name in self._parts:
            split = getattr(splits, name)
            if name not in self._caches:
                self._caches[name] = PrefixCache(self._model, split.images, autocast=self._autocast)
            performance = _performance(self._caches[name], model, split)
            measures = SETTINGS[self._source.setting].measures
            found |= {f"{name}_{measure}": getattr(performance, measure) for measure in measures}
        if self._conditioned:
            few = some(splits.train, _FEW, seed=0)
            found |= conditioning(model, few.images, few.labels)
        return found


@dataclass(frozen=True)
class FineTuning:
    """Trains a compressed network by a recipe.

    Attributes:
        recipe: how.
        source: on what.
    """

    recipe: Recipe
    source: Source

    def __call__(self, model: nn.Module, seed: int) -> nn.Module:
        """The same network, with the weights of its best epoch."""
        train(model, self.source.splits(), self.recipe, seed)
        return model


@dataclass(frozen=True, eq=False)
class Calibration:
    """Fits a compressed network to images without labels.

    Attributes:
        model: the network before any compression.
        source: the data.
        count: how many random training images are looked at.
        seed: decides which.
    """

    model: nn.Module
    source: Source
    count: int
    seed: int

    def __call__(self, model: nn.Module) -> nn.Module:
        """The same network, calibrated."""
        images = self.source.feature_images(self.count, self.seed)
        return td.calibrate(model, list(images.split(_AT_A_TIME)), self.model, inplace=True)


def some(split: Split, count: int | None, seed: int) -> Split:
    """Random images of a part, all of them for None."""
    if count is None or count >= len(split):
        return split
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.take(order[:count].to(split.labels.device))


def _performance(cache: PrefixCache, model: nn.Module, split: Split) -> Performance:
    scores, start = Scores(split.labels.device), 0
    for logits in cache.outputs(model):
        scores.update(logits, split.labels[start : start + len(logits)])
        start += len(logits)
    return scores.compute()


@lru_cache(maxsize=1)
def _splits(source: Source) -> Splits:
    splits = SETTINGS[source.setting].load(source.path)
    parts: dict[str, Any] = {name: some(getattr(splits, name), source.evaluated, seed=0) for name in PARTS}
    return replace(splits, **parts).to(source.device)
