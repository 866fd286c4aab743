"""BatchNorm statistics as the compressed network's own activations have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tdcompress.layers.moments import check_finite


def is_estimated(module: nn.Module) -> bool:
    """Whether a module normalizes by statistics that it has gathered."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


@contextmanager
def estimating(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block every forward adds to the statistics, from zero on, and is normalized by those so far.

    Nothing has to be in training mode for that, so that a batch of one sample will do. Mean and variance are pooled
    over all that was seen.
    """
    with ExitStack() as stack:
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(_Estimate()).remove)
        yield


class _Estimate:
    """Pooled mean and variance of a norm's input (Chan, Golub & LeVeque 1979), written into it before it is used."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def __call__(self, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)  # (channels, samples · positions)
        count = values.shape[1]
        mean = values.mean(1)
        check_finite(mean)
        apart, total = mean - self.mean.to(mean), self.count + count
        squares = (values - mean[:, None]).square().sum(1) + apart.square() * self.count * count / total
        self.squares = self.squares.to(mean) + squares
        self.mean, self.count = self.mean.to(mean) + apart * count / total, total
        if total > 1:
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.squares / (total - 1))
