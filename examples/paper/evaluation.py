"""How well a network classifies: images, or the next byte at every place of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdcompress.errors import CompressionError
from tdcompress.metrics import evaluating


@dataclass(frozen=True)
class Performance:
    """How well a network classifies.

    Attributes:
        error: fraction of labels of which the most likely class is a wrong one, in [0, 1].
        cross_entropy: mean over labels of −log p(label), in nats.
    """

    error: float
    cross_entropy: float

    @property
    def accuracy(self) -> float:
        """1 − error."""
        return 1.0 - self.error

    @property
    def bits_per_byte(self) -> float:
        """The cross-entropy in bits, where labels are bytes."""
        return self.cross_entropy / math.log(2)


class Scores:
    """The performance on many batches, summed up on their device.

    Args:
        device: where the logits are.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._wrong = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._count = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch; see `cross_entropy` for the shapes."""
        self._wrong += (logits.argmax(dim=-1) != labels).sum()
        self._loss += cross_entropy(logits, labels, reduction="sum").double()
        self._count += labels.numel()

    def compute(self) -> Performance:
        """The mean over all labels."""
        return Performance(self._wrong.item() / self._count, self._loss.item() / self._count)


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """−log p(label) in nats, in float32 at least.

    Args:
        logits: (N, classes), or (N, places, classes) where each place of a sample has a label.
        labels: (N,) or (N, places), whole numbers of any type.
        reduction: "mean" or "sum", over all labels.

    Example:
        >>> cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.uint8))
        tensor(1.3863)
    """
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten().long(), reduction=reduction)


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 500, autocast: bool = False
) -> Performance:
    """Classification error and cross entropy in evaluation mode; the network is left as it was.

    Args:
        model: gives logits (N, classes) for images (N, C, H, W), or (N, places, classes) for texts (N, places).
        images: (N, C, H, W), standardised, or texts (N, places); moved to the model's device a batch at a time.
        labels: (N,) or (N, places).
        batch_size: images or texts at a time.
        autocast: compute in bfloat16 where PyTorch's autocast does; otherwise in the model's own precision.

    Raises:
        CompressionError: there are no images.
    """
    if len(labels) == 0:
        raise CompressionError("there are no images to evaluate on; give at least one")
    device = device_of(model)
    scores = Scores(device)
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    with (
        evaluating(model),
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, autocast),
    ):
        for batch, expected in batches:
            scores.update(model(batch.to(device)), expected.to(device))
    return scores.compute()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU for a model without any."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
