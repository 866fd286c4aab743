"""BatchNorm statistics as the compressed network's own activations have them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tdcompress.batches import forward
from tdcompress.layers.moments import check_finite
from tdcompress.watching import watching


def is_estimated(module: nn.Module) -> bool:
    """Whether a module normalizes by statistics that it has gathered."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def frozen_norms(model: nn.Module) -> set[str]:
    """The modules that are in evaluation mode in a model that is in training mode: among them the norms that stay."""
    return {name for name, module in model.named_modules() if model.training and not module.training}


@dataclass(frozen=True)
class Reference:
    """A norm of the original, and what it has seen of the inputs so far.

    Attributes:
        norm: it knows its statistics from far more data than these inputs.
        pooled: of these inputs.
    """

    norm: Any
    pooled: Pooled


@contextmanager
def estimating(model: nn.Module, names: Iterable[str], references: Mapping[str, Reference]) -> Iterator[None]:
    """Inside the block every forward adds to the statistics, from zero on, and is normalized by those so far.

    Nothing has to be in training mode for that, so that a batch of one sample will do. Mean and variance are pooled
    over all that was seen.

    Args:
        model: whose statistics are written.
        names: of its norms.
        references: the original's norms, by the same names, which have to see every batch first. Their statistics are
            kept, and moved only by what the two models' differ by on the same inputs: the means by the difference, the
            variances by the quotient.
    """
    norms = {name: model.get_submodule(name) for name in names}
    estimates = {name: Estimate(norm, references.get(name)) for name, norm in norms.items()}
    with watching(norms, lambda name, call: estimates[name].update(call.input), outputs=False):
        yield


def restate(model: nn.Module, batches: Iterable[Any], frozen: Container[str] = ()) -> None:
    """Let every BatchNorm normalize by the statistics that its input has, without changing what it answers.

    γ (x − μ) / √(σ² + ε) + β stays as it is for other statistics μ' and σ'² if

        γ' = γ √((σ'² + ε) / (σ² + ε)),  β' = β + γ (μ' − μ) / √(σ² + ε).

    A network that was fitted in evaluation mode has statistics that are no longer those of its inputs. In training mode
    it would normalize by its batches, and be another network.

    Args:
        model: in evaluation mode; it is changed.
        batches: of inputs.
        frozen: names of norms that stay as they are, as do those without a weight and a bias, or whose weight or bias
            requires no gradient.
    """
    norms = {
        name: norm
        for name, norm in model.named_modules()
        if is_estimated(norm) and name not in frozen and all(_is_free(norm, part) for part in ("weight", "bias"))
    }
    pooled = {name: Pooled() for name in norms}
    with torch.no_grad():
        if norms:
            with watching(norms, lambda name, call: pooled[name].update(call.input), outputs=False):
                for batch in batches:
                    forward(model, batch)
        for name, norm in norms.items():
            if pooled[name].count >= 2:
                _restate(norm, pooled[name].mean, pooled[name].squares / (pooled[name].count - 1))


def _is_free(norm: nn.Module, name: str) -> bool:
    parameter = getattr(norm, name)
    return parameter is not None and parameter.requires_grad


def _restate(norm: Any, mean: Tensor, variance: Tensor) -> None:
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # γ / √(σ² + ε)
    norm.bias.add_((scale * (mean - norm.running_mean.double())).to(norm.bias))
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


class Pooled:
    """Mean and squared deviations of a norm's input, pooled over all calls (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def become(self, other: Pooled) -> None:
        """Have seen what another has."""
        self.count, self.mean, self.squares = other.count, other.mean, other.squares

    def update(self, inputs: Tensor) -> None:
        """Take in what a norm is called with."""
        inputs = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
        count = inputs.numel() // inputs.shape[1]
        rest = [axis for axis in range(inputs.ndim) if axis != 1]
        variance, mean = (one.double() for one in torch.var_mean(inputs, dim=rest, correction=0))  # Welford's
        check_finite(mean)
        apart, total = mean - self.mean.to(mean), self.count + count
        squares = variance * count + apart.square() * self.count * count / total
        self.squares = self.squares.to(mean) + squares
        self.mean, self.count = self.mean.to(mean) + apart * count / total, total


class Estimate:
    """The statistics of a norm's input, written into it before they are used.

    Attributes:
        norm: whose they are.
        pooled: what was seen so far.
        reference: the original's norm; None where there is no original.
    """

    def __init__(self, norm: Any, reference: Reference | None = None) -> None:
        self.norm, self.pooled, self.reference = norm, Pooled(), reference

    def update(self, inputs: Tensor) -> None:
        """Take in what the norm is called with, before it normalizes it."""
        self.pooled.update(inputs)
        mean, squares, count = self.pooled.mean, self.pooled.squares, self.pooled.count
        if count < 2:
            return
        variance = squares / (count - 1)
        if self.reference is not None and self.reference.pooled.count:
            original, before = self.reference.norm, self.reference.pooled
            spread = before.squares.to(mean)
            mean = original.running_mean.to(mean) + mean - before.mean.to(mean)
            # Where the original's input is constant there is no quotient, and what is seen is all that is known.
            variance = torch.where(spread > 0, original.running_var.to(mean) * squares / spread, variance)
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(variance)
