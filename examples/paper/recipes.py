"""How the study's networks are trained and fine-tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from tdcompress.errors import CompressionError

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("steps", "one-cycle")
STEPS = ("auto", "eager", "compiled", "graph")
_WARM_UP = 0.2  # the part of a one-cycle schedule over which the learning rate rises
_WARM_UP_START = 0.04  # what it starts from, as a fraction of the highest


def multiplies_bfloat16(device: str | torch.device) -> bool:
    """Whether a device is worth computing in bfloat16 on.

    Without AVX-512, PyTorch's CPU kernels for bfloat16 take ten to a hundred times as long as those for float32.

    >>> multiplies_bfloat16("cuda")
    True
    """
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        learning_rate: the first one of "steps", the highest one of "one-cycle".
        epochs: passes over the training part, at most.
        optimizer: "sgd" or "adam".
        momentum: of "sgd"; Nesterov's if `nesterov`.
        nesterov: see `momentum`.
        weight_decay: factor of the squared-norm penalty, on all parameters.
        schedule: "steps" multiplies the learning rate by 0.1 at each of `milestones`; "one-cycle" raises it
            linearly over the first fifth of the training and lowers it to 0 along a cosine over the rest.
        milestones: numbers of epochs after which "steps" goes one step down.
        batch_size: images in a step; what is left over at an epoch's end is a smaller batch.
        patience: epochs without a better validation result after which to stop; None runs all epochs.
        crop_padding: pixels of black put around training images before a part of the original size is cut
            out of them at random.
        flip: mirror half of the training images from left to right, at random.
        autocast: compute in bfloat16 where PyTorch's autocast does; weights stay as they are.
        channels_last: train in the channels-last memory format, the faster one on most machines.
        samples: images of the training part in an epoch, drawn anew for each; None for all of them.
        step: how a step runs: "eager", op by op; "compiled", by torch.compile, which pays where training takes
            longer than compiling; "graph", as a CUDA graph, which pays where a network is small; "auto" is "graph"
            on CUDA and "eager" elsewhere.

    Raises:
        CompressionError: an unknown optimizer or schedule, or a number out of its range.

    Example:
        >>> recipe = Recipe(learning_rate=0.1, epochs=100, milestones=(30, 60, 90))
        >>> round(recipe.learning_rate_at(75), 6)
        0.001
    """

    learning_rate: float
    epochs: int
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "steps"
    milestones: tuple[int, ...] = ()
    batch_size: int = 128
    patience: int | None = None
    crop_padding: int = 0
    flip: bool = False
    autocast: bool = False
    channels_last: bool = False
    samples: int | None = None
    step: str = "auto"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("step", self.step, STEPS),
        ):
            if value not in known:
                raise CompressionError(f"unknown {what} {value!r}; choose one of {', '.join(known)}")
        if not self.learning_rate > 0:
            raise CompressionError(f"learning_rate must be above 0, found {self.learning_rate}")
        if self.nesterov and not self.momentum > 0:
            raise CompressionError(f"nesterov needs a momentum above 0, found {self.momentum}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("crop_padding", 0), ("patience", 1), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise CompressionError(f"{name} must be at least {least}, found {value}")

    def on(self, device: str | torch.device) -> Recipe:
        """The same for a device: in float32 where that is slow in bfloat16."""
        return replace(self, autocast=self.autocast and multiplies_bfloat16(device))

    def learning_rate_at(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, which may be a fraction."""
        if self.schedule == "steps":
            return self.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        done = epoch / self.epochs
        if done < _WARM_UP:
            return self.learning_rate * (_WARM_UP_START + (1 - _WARM_UP_START) * done / _WARM_UP)
        return self.learning_rate * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2


_ONE_CYCLE = Recipe(
    learning_rate=0.1,
    epochs=12,
    schedule="one-cycle",
    nesterov=True,
    weight_decay=5e-4,
    crop_padding=2,
    flip=True,
    autocast=True,
    channels_last=True,
)
_DIGITS = Recipe(learning_rate=1e-2, epochs=20, optimizer="adam", schedule="one-cycle", batch_size=64, crop_padding=1)
_GPT = Recipe(
    learning_rate=1e-3, epochs=5, optimizer="adam", schedule="one-cycle", batch_size=32, samples=16_384, autocast=True
)
_GARIPOV_MEDIUM = Recipe(learning_rate=1e-4, epochs=3, crop_padding=4, flip=True, autocast=True, channels_last=True)

RECIPES = {
    # The paper's. It stops early on the validation part without saying after how many epochs, so these run to
    # the end and keep the best epoch.
    "garipov": Recipe(learning_rate=0.1, epochs=100, milestones=(30, 60, 90), crop_padding=4, flip=True),
    "garipov-fine-tuning": Recipe(learning_rate=1e-4, epochs=10, crop_padding=4, flip=True),
    "resnet18": Recipe(
        learning_rate=1e-3, epochs=300, optimizer="adam", milestones=(100, 150), crop_padding=4, flip=True
    ),
    "resnet18-fine-tuning": Recipe(learning_rate=1e-5, epochs=25, optimizer="adam", crop_padding=4, flip=True),
    # For machines without a GPU: one cycle of the learning rate, in bfloat16.
    "one-cycle": _ONE_CYCLE,
    "resnet18-fmnist": replace(_ONE_CYCLE, epochs=8),
    # By SGD at 0.1 its loss jumps up in the second epoch, and does not recover.
    "resnet50-fmnist": replace(
        _ONE_CYCLE, learning_rate=2e-3, epochs=9, optimizer="adam", nesterov=False, weight_decay=0.0
    ),
    # Minutes on two cores: the paper's optimizer and learning rate, for fewer images. It says less than the paper's.
    "garipov-fine-tuning-short": Recipe(
        learning_rate=1e-4, epochs=1, samples=2000, crop_padding=4, flip=True, autocast=True, channels_last=True
    ),
    # Nearer to the paper's, in hours.
    "garipov-fine-tuning-medium": _GARIPOV_MEDIUM,
    "garipov-strategies": replace(_GARIPOV_MEDIUM, samples=10_000),
    "resnet18-short": replace(_ONE_CYCLE, epochs=4, samples=4000, crop_padding=4),
    "resnet18-fine-tuning-short": Recipe(
        learning_rate=1e-5,
        epochs=1,
        samples=500,
        optimizer="adam",
        crop_padding=4,
        flip=True,
        autocast=True,
        channels_last=True,
    ),
    "garipov-short": replace(_ONE_CYCLE, epochs=6, samples=10_000, crop_padding=4),
    # 21 MB of text in five pieces, 8 192 bytes a step, at the rates that are usual for Adam and GPTs of this size.
    "gpt": _GPT,
    "gpt-fine-tuning": replace(_GPT, learning_rate=1e-4, epochs=1, samples=2048, schedule="steps"),
    # Seconds each.
    "digits": _DIGITS,
    "digits-resnet": replace(_DIGITS, epochs=40),
    "digits-resnet-sgd": replace(_ONE_CYCLE, epochs=40, batch_size=64, crop_padding=1, flip=False, autocast=False),
    # Slow enough that a compression by a tenth, which changes next to nothing, is not worse after it.
    "digits-fine-tuning": Recipe(learning_rate=1e-4, epochs=2, optimizer="adam", batch_size=64, crop_padding=1),
}
