"""Tensors that tests begin from: random ones, and the weights of a trained network."""

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file

from examples.paper import training

CHECKPOINT = Path(training.__file__).parent / "checkpoints" / "garipovnet_fmnist.safetensors"


def random(shape, seed=0, dtype=torch.float64):
    """Normal random numbers, drawn in float64 so that every dtype has the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def falling(shape, seed=0):
    """The same, of which the second mode's slices get smaller to a twentieth, so that ranks and shapes differ."""
    decay = torch.linspace(1, 0.05, shape[1], dtype=torch.float64)
    return random(shape, seed) * decay.view(1, -1, *[1] * (len(shape) - 2))


@functools.cache
def trained_weights():
    """What the committed GaripovNet, trained on Fashion-MNIST, holds; not to be changed."""
    return load_file(CHECKPOINT)
