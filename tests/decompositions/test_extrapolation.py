"""What the extrapolated sweeps leave behind."""

import pytest
import torch

from tdcompress.decompositions import btd, cp, tensor_ring
from tests.tensors import random

PARTS = {
    "cp": lambda kernel: cp(kernel, 4).factors,
    "btd": lambda kernel: [getattr(btd(kernel, (2, 2, 2)), name) for name in ("left", "right", "cores")],
    "tr": lambda kernel: tensor_ring(kernel.movedim(0, -1), (2, 3, 3, 3)).cores,
}


@pytest.mark.parametrize("method", PARTS)
def test_factors_can_be_trained(method):
    """The sweeps themselves are made without being ready for gradients."""
    parts = [part.requires_grad_() for part in PARTS[method](random((6, 5, 3, 3), dtype=torch.float32))]
    sum(part.square().sum() for part in parts).backward()
    assert all(torch.equal(part.grad, 2 * part) for part in parts)
