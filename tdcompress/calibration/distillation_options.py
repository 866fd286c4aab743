"""What distillation may be told; the defaults need no thought."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tdcompress.calibration.calibrate import Fit, check_fit
from tdcompress.decompositions.options import check_count
from tdcompress.errors import CompressionError, unknown

Optimizer = Literal["muon", "adam"]


@dataclass(frozen=True)
class DistillationOptions:
    """How `distill` fits a compressed model to what the original says.

    Attributes:
        passes: over the training part of the data. More of them help much where much is missing.
        learning_rate: relative to the root mean square of each parameter, so that it does not matter how
            stages share the size of their product; the highest of a one-cycle schedule, which rises for a fifth of the
            steps and falls to 0 along a cosine. None for what suits the distance that is to be gone, see `peak_rate`.
        batch_size: samples in a step, at most; larger batches are cut, smaller ones are taken as they are.
        temperature: by which logits are divided before they are compared (Hinton, Vinyals & Dean 2015).
        local: what `calibrate` fits first, layer by layer; None to start from the model as it is.
        features: names or globs of modules, of both models, whose outputs are compared as well; None for no others.
        features_weight: of the mean relative squared change of those outputs, in the loss.
        augment: a function that is given a batch of inputs, a tensor or a dict, and returns one; what it says of the
            inputs need not be true, for the original is asked again. It may draw from PyTorch's global generator, whose
            state is set for it and put back after it; it is not applied to what is held out.
        held_out: the share of the samples that is not trained on and decides which pass is kept.
        patience: passes without a better result on what is held out after which to stop; None for all passes.
        clip_norm: the largest norm of the gradient of all parameters together.
        autocast: compute in bfloat16 where PyTorch's autocast does, in training only.
        optimizer: `"muon"` for steps that are orthogonal matrices (Jordan et al. 2024), which take the thin stages of a
            factorized layer farther, and Adam for what is no matrix of up to 512 rows or columns; or `"adam"` for all.

    Raises:
        CompressionError: a number is out of its range, `augment` is no function, or `local` or `optimizer` is unknown.
    """

    passes: int = 60
    learning_rate: float | None = None
    batch_size: int = 50
    temperature: float = 2.0
    local: Fit | None = "all"
    features: str | Sequence[str] | None = None
    features_weight: float = 1.0
    augment: Callable[[Any], Any] | None = None
    held_out: float = 0.1
    patience: int | None = None
    clip_norm: float = 1.0
    autocast: bool = False
    optimizer: Optimizer = "muon"

    def __post_init__(self) -> None:
        check_count("passes", self.passes, least=1)
        check_count("batch_size", self.batch_size, least=1)
        if self.patience is not None:
            check_count("patience", self.patience, least=1)
        for name in ("temperature", "features_weight", "clip_norm"):
            check_positive(name, getattr(self, name))
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if not 0 < self.held_out < 1:
            raise CompressionError(f"held_out must be a share between 0 and 1, got {self.held_out!r}.")
        if self.augment is not None and not callable(self.augment):
            raise CompressionError(f"augment must be a function of a batch, got a {type(self.augment).__name__}.")
        if self.local is not None:
            check_fit(self.local)
        if self.optimizer not in get_args(Optimizer):
            raise unknown("optimizer", self.optimizer, get_args(Optimizer))

    @staticmethod
    def peak_rate(share: float) -> float:
        """The highest learning rate where `learning_rate` is None, 0.03 · √(s / (s + ¼)).

        Steps that suit a long way lead a model that is near by away from where it is, and small ones get nowhere from
        far away.

        Args:
            share: s, of what the original says, how much is missing where the descent begins.

        >>> [round(DistillationOptions.peak_rate(share), 4) for share in (0.0, 0.01, 0.1, 1.0, math.inf)]
        [0.0, 0.0059, 0.016, 0.0268, 0.03]
        """
        return _LARGEST_RATE * math.sqrt(1 - _SCALE / (share + _SCALE))

    @staticmethod
    def rate_at(done: float) -> float:
        """The learning rate when a share of all steps is done, as a share of the highest.

        >>> [round(DistillationOptions.rate_at(done), 2) for done in (0, 0.2, 0.6, 1)]
        [0.04, 1.0, 0.5, 0.0]
        """
        if done < _WARM_UP:
            return _FIRST_RATE + (1 - _FIRST_RATE) * done / _WARM_UP
        return (1 + math.cos(math.pi * (min(done, 1.0) - _WARM_UP) / (1 - _WARM_UP))) / 2


# By validation, on the networks of `python -m examples.budget.rates`.
_LARGEST_RATE = 3e-2
_SCALE = 0.25  # the share at which it is √½ of that
_WARM_UP = 0.2  # the share of the steps in which the learning rate rises
_FIRST_RATE = 0.04  # of the highest


def check_positive(name: str, value: float) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        CompressionError: it names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CompressionError(f"{name} must be a number above 0, got {value!r}.")
