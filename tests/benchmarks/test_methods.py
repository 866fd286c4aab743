"""The sections on methods ask the registry, and say what was measured."""

from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.decompositions.bridge import tensorly_on_torch
from tdcompress.methods import METHODS, taking
from tests.benchmarks.blocks import SIZES, stacks
from tests.benchmarks.linear import block_tt, multiply_adds
from tests.benchmarks.methods import BESIDE, Approximation, approximations, cases, convolution_ways, means


def test_every_method_for_convolutions_is_there():
    assert set(convolution_ways()) == {BESIDE, *taking(td.ConvSpec.of(nn.Conv2d(4, 4, 3)))}


def test_a_way_without_a_rank_for_a_budget_has_no_error():
    ways = {"one": ("svd", None), "none": ("btd", td.BTDOptions(sizes=(16,)))}
    found = list(approximations(ways, "conv2", 0.1))
    assert [(row.way, row.layer, row.kept) for row in found] == [("one", "conv2", 0.1), ("none", "conv2", 0.1)]
    assert found[0].error is not None
    assert 0 < found[0].error < 1
    assert found[1].error is None


def test_means_are_over_the_same_cases_and_left_out_where_one_is_missing():
    errors: dict[str, list[float | None]] = {BESIDE: [0.1, 0.4], "better": [0.05, 0.1], "sparse": [0.2, None]}
    rows = [
        Approximation(way, layer, 0.5, error, 0.5)
        for way, found in errors.items()
        for layer, error in zip(("one", "two"), found, strict=True)
    ]
    assert means(rows)[2] == [
        [BESIDE, "1.0000", "1.0000", "1 s"],
        ["better", "0.3536", "0.3536", "1 s"],
        ["sparse", "-", "-", "1 s"],
    ]
    assert cases(rows)[2] == [["one", "50%", "0.1000", "0.0500", "0.2000"], ["two", "50%", "0.4000", "0.1000", "-"]]


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_stacks_of_blocks_have_the_sizes_that_they_are_called_by_and_fill_the_budget(ratio):
    models = stacks(64, ratio)
    for size in SIZES:
        layer: Any = models[f"size {size}"]
        assert layer.ranks[1:] == (size, size)
        more = METHODS["btd"].parameters_at((64, 64, 3, 3), (layer.ranks[0] + 1, size, size))
        assert layer.ratio >= ratio
        assert more > (1 - ratio) * layer.spec.numel


def test_the_peer_of_the_tensor_train_matrix_has_its_cores():
    train = td.TTMConv.from_conv(nn.Linear(24, 60), rank=(3, 4))
    peer: Any = block_tt(train)
    with tensorly_on_torch(), torch.no_grad():
        for mine, theirs in zip(train.weighted, peer.weight.factors, strict=True):
            assert mine.weight.numel() == theirs.numel()
        assert peer(torch.zeros(2, 24)).shape == (2, 60)
    assert multiply_adds(train, 24) == sum(
        stage.weight.numel() * rows for stage, rows in zip(train.weighted, (6, 10, 20), strict=True)
    )
