"""How far what a model says is from what another does, as something to go down on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdcompress.calibration.distillation_options import check_positive
from tdcompress.errors import CompressionError
from tdcompress.outputs import Logits, Output, kl_divergence, read_output


def distillation_loss(output: Any, target: Any, *, temperature: float = 2.0, logits: Logits = None) -> Tensor:
    """The loss that `distill` goes down on, for a training loop of your own.

    For logits, the mean over all predictions of T² · KL(softmax(target / T) ‖ softmax(output / T)), in nats (Hinton,
    Vinyals & Dean 2015, Distilling the Knowledge in a Neural Network; T² keeps the gradients' size). For other values
    Σ (output − target)² / Σ target², over the whole batch. In float32 at least.

    Args:
        output: what the trained model returned: a tensor, an output of `transformers`, or what has a tensor first.
        target: what the original returned for the same inputs; no gradient goes there.
        temperature: T.
        logits: what the outputs are, as for `approximation_errors`.

    Returns:
        A number, with a graph to `output`.

    Raises:
        CompressionError: the outputs cannot be read, or are not of one shape; the temperature is not above 0.

    Example:
        >>> target, output = torch.randn(5, 10), torch.randn(5, 10, requires_grad=True)
        >>> distillation_loss(output, target).backward()
        >>> output.grad.shape, float(distillation_loss(target, target))
        (torch.Size([5, 10]), 0.0)
    """
    check_positive("temperature", temperature)
    with torch.no_grad():
        goal = read_output(target, logits)
    return loss_between(goal, read_output(output, logits), temperature)


def loss_between(target: Output, output: Output, temperature: float) -> Tensor:
    """The same for outputs that have been read.

    Raises:
        CompressionError: they are not of one shape and kind.
    """
    _check_alike(target, output)
    goal = target.values.detach()
    if not target.are_logits:
        return squared_change(goal, output.values)
    return temperature**2 * kl_divergence(goal / temperature, output.values / temperature).mean()


def squared_change(target: Tensor, output: Tensor) -> Tensor:
    """‖output − target‖² / ‖target‖², for tensors of one shape; the numerator where the target is zero."""
    change: Tensor = _SquaredDistance.apply(output, target)  # type: ignore[no-untyped-call]
    size = _squares(target)
    return change / torch.where(size > 0, size, torch.ones_like(size))


class _SquaredDistance(torch.autograd.Function):
    """Σ (output − target)²; the way back, in one operation for five, is for the output alone."""

    @staticmethod
    def forward(output: Tensor, target: Tensor) -> Tensor:
        return _squares(output - target)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        output, target = ctx.saved_tensors
        return (output - target) * (2 * gradient), None


def _squares(values: Tensor) -> Tensor:
    """Their sum, of half precision in float32 and without a copy in it."""
    if values.dtype in (torch.float16, torch.bfloat16):
        return torch.linalg.vector_norm(values, dtype=torch.float32).square()
    return values.square().sum()


@dataclass(frozen=True)
class Change:
    """How far a model is from the original: the mean KL divergence of logits in nats, at temperature 1, or
    Σ (output − target)² / Σ target² of other values.

    Attributes:
        parts: what each prediction has in it, (rows,), in float64.
    """  # noqa: D205, one sentence

    parts: Tensor

    @classmethod
    def of(cls, pairs: Iterable[tuple[Output, Output]]) -> Change:
        """Over many batches of targets and outputs."""
        changes, sizes = [], []
        for target, output in pairs:
            _check_alike(target, output)
            before, after = target.values.double(), output.values.double()
            if target.are_logits:
                changes.append(kl_divergence(before, after))
                sizes.append(torch.ones_like(changes[-1]))
            else:
                changes.append((after - before).square().sum(1))
                sizes.append(before.square().sum(1))
        size = torch.cat(sizes).sum()
        return cls(torch.cat(changes) / torch.where(size > 0, size, torch.ones_like(size)))

    @property
    def value(self) -> float:
        """The number; infinite where an output was not finite."""
        found = float(self.parts.sum())
        return max(found, 0.0) if math.isfinite(found) else math.inf

    def is_within_noise_of(self, other: Change) -> bool:
        """Whether it is at most one standard error of their paired difference above another, on the same data."""
        apart = self.parts - other.parts
        return bool(apart.sum() <= apart.std(correction=0) * math.sqrt(len(apart)))


def information(outputs: Iterable[Output]) -> float:
    """What outputs tell inputs apart by, in the unit of a `Change`.

    Of logits the mean KL divergence of the predictions from their mean, in nats: what a model that gives everything the
    same answer lacks; of a single one, which has no other to be told from, that from the uniform prediction. Of other
    values 1, for their change is relative.

    >>> confident = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    >>> round(information([Output(confident, True)]), 4), information([Output(confident, False)])
    (0.6931, 1.0)
    """
    together, apart, rows = torch.zeros((), dtype=torch.float64), 0.0, 0
    for output in outputs:
        if not output.are_logits:
            return 1.0
        likely = output.values.double().softmax(1)
        together = together + likely.sum(0).cpu()
        apart += float(torch.xlogy(likely, likely).sum())
        rows += len(likely)
    mean = together / rows
    common = mean if rows > 1 else torch.full_like(mean, 1 / len(mean))
    return max(apart / rows - float(torch.xlogy(mean, common).sum()), torch.finfo(torch.float64).tiny)


def _check_alike(target: Output, output: Output) -> None:
    if (target.values.shape, target.are_logits) != (output.values.shape, output.are_logits):
        raise CompressionError(
            f"the two models' outputs differ in kind: an {target} and an {output}; do they belong together?"
        )
