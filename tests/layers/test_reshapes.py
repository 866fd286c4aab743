"""Modules that rearrange, against rearranging by hand, and under PyTorch's tools."""

import pytest
import torch

from tdcompress import CompressionError
from tdcompress.layers.reshapes import Regroup

GRID, ORDER = (2, 3, 4, 5), (3, 1, 0, 2)


def by_hand(features, arrive, leave):
    """(rows, folded, channels) -> (rows, folded, channels), entry by entry."""
    rows = len(features)
    found = features.reshape(rows, *GRID).permute(0, *(1 + axis for axis in ORDER))
    folded = 1
    for axis in ORDER[:leave]:
        folded *= GRID[axis]
    return found.reshape(rows, folded, -1)


@pytest.mark.parametrize("arrive", [0, 1, 2])
@pytest.mark.parametrize("leave", [0, 1, 2])
@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
def test_features_are_permuted_whatever_stands_before_them(arrive, leave, lead):
    folded = {0: (), 1: (2,), 2: (6,)}[arrive]
    inputs = torch.randn(*lead, *folded, 120 // (folded or (1,))[0])
    found = Regroup(GRID, ORDER, arrive=arrive, leave=leave)(inputs)
    expected = by_hand(inputs.reshape(-1, 120), arrive, leave)
    assert found.shape == (*lead, *(expected.shape[1:] if leave else expected.shape[2:]))
    assert torch.equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("arrive", [0, 1, 2])
@pytest.mark.parametrize("leave", [0, 1, 2])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_images_are_permuted_at_every_pixel(arrive, leave, spatial):
    folded, size = {0: 1, 1: 2, 2: 6}[arrive], (3, 2, 4)[:spatial]
    inputs = torch.randn(5 * folded, 120 // folded, *size)
    layer = Regroup(GRID, ORDER, arrive=arrive, leave=leave, spatial=spatial)
    found = layer(inputs)
    assert found.is_contiguous()
    if spatial > 1:
        layout = torch.channels_last if spatial == 2 else torch.channels_last_3d
        other = layer(inputs.contiguous(memory_format=layout))
        assert torch.equal(other, found)
        assert other.is_contiguous(memory_format=layout)
    pixels = inputs.reshape(5, 120, -1).movedim(-1, 1).reshape(-1, 120)
    expected = by_hand(pixels, arrive, leave)
    found = found.reshape(5, *expected.shape[1:], -1).movedim(-1, 1)
    assert torch.equal(found.reshape(expected.shape), expected)


def test_the_bias_keeps_the_type_of_the_features_under_autocast():
    layer = Regroup((2, 3), (1, 0), bias=True)
    assert layer.bias is not None
    torch.nn.init.normal_(layer.bias)
    inputs = torch.randn(4, 6)
    assert torch.equal(layer(inputs), inputs.reshape(4, 2, 3).mT.flatten(1) + layer.bias)
    assert layer(inputs.bfloat16()).dtype == torch.bfloat16
    images = Regroup((2, 3), (1, 0), bias=True, spatial=2)
    images.bias = layer.bias
    assert torch.equal(images(inputs[..., None, None])[..., 0, 0], layer(inputs))
    assert "order=(1, 0)" in repr(layer)


def test_images_without_a_batch_are_refused():
    with pytest.raises(CompressionError, match=r"takes batches with 2 spatial axes, .* \(6, 5, 5\); add a batch axis"):
        Regroup((2, 3), (1, 0), leave=1, spatial=2)(torch.zeros(6, 5, 5))


@pytest.mark.parametrize("spatial", [None, 2])
def test_compiled_and_exported_for_any_batch(spatial):
    stack = torch.nn.Sequential(
        Regroup((2, 3), (1, 0), leave=1, spatial=spatial), Regroup((3, 2), (1, 0), arrive=1, bias=True, spatial=spatial)
    )
    inputs = torch.randn(4, 6, *[3] * (spatial or 0))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(stack, fullgraph=True, backend="eager")(inputs), stack(inputs))
    program = torch.export.export(stack, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    assert torch.equal(program.module()(torch.cat([inputs, inputs])), stack(torch.cat([inputs, inputs])))
