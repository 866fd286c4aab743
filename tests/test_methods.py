"""The registry of methods is open to users."""

import itertools

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS, get_method, register_method


def test_a_registered_class_is_found_by_decompose():
    try:

        @td.register_method("mine")
        class Mine(td.TuckerConv):
            method = "mine"

        assert isinstance(td.decompose(nn.Conv2d(8, 8, 3), "", "mine", 0.5), Mine)
        ruled = [td.decompose(nn.Conv2d(8, 8, 3), "", name, 0.5, rank="tensorly-torch") for name in ("mine", "tucker")]
        assert ruled[0].ranks == ruled[1].ranks
    finally:
        METHODS.pop("mine", None)


def test_a_method_without_a_rule_of_tensorly_torch_says_so():
    with pytest.raises(td.CompressionError, match="no rank rule for method 'svd'"):
        td.decompose(nn.Conv2d(8, 8, 3), "", "svd", 0.5, rank="tensorly-torch")


def test_the_class_gets_the_name_that_it_is_registered_under():
    try:

        @td.register_method("yours")
        class Yours(td.TuckerConv):
            pass

        small = td.decompose(nn.Sequential(nn.Conv2d(8, 8, 3)), "0", "yours", 0.5)
        assert td.report(small).layers[0].method == Yours.method == "yours"
        assert td.TuckerConv.method == "tucker"
        with pytest.raises(td.CompressionError, match=r"Yours is method 'yours' already; derive from it"):
            td.register_method("another")(Yours)
    finally:
        METHODS.pop("yours", None)


def test_a_taken_name_and_a_foreign_class_are_refused():
    with pytest.raises(td.CompressionError, match="method 'cp' exists"):
        register_method("cp")(td.TuckerConv)
    with pytest.raises(td.CompressionError, match="no subclass of FactorizedConv"):
        register_method("linear")(nn.Linear)  # type: ignore[type-var]
    assert get_method("cp") is td.CPConv


def test_an_unfinished_class_is_refused_with_what_it_lacks():
    with pytest.raises(td.CompressionError, match="Half does not fill in choose_ranks, full_rank"):

        @td.register_method("half")
        class Half(td.FactorizedConv):
            method = "half"


def test_a_method_that_proposes_no_rank_is_told_apart_from_a_ratio_out_of_reach():
    class Hesitant(td.TuckerConv):
        method = "hesitant"

        @staticmethod
        def choose_ranks(kernels, budget, options):
            return []

    with pytest.raises(td.CompressionError, match=r"hesitant proposes no rank for ratio=0\.5"):
        Hesitant.from_conv(nn.Conv2d(8, 8, 3), ratio=0.5)


def test_stages_with_groups_of_their_own_are_part_of_the_weight():
    """A depthwise stage first, one that multiplies channels, and one with twice the groups."""

    class Depthwise(td.FactorizedConv):
        method = "depthwise"

        @staticmethod
        def full_rank(modes):
            return (2,)

        @staticmethod
        def parameters_at(modes, rank):
            return rank[0] * modes[1] * sum(modes[2:])

        @staticmethod
        def choose_ranks(kernels, budget, options):
            return [(1,)]

        @staticmethod
        def solve(kernel, rank, options, generator):
            raise NotImplementedError

        @staticmethod
        def stages(spec, rank, axes):
            channels = spec.in_channels * rank[0]
            return {
                "first": spec.stage(spec.in_channels, channels, (0,), groups=spec.in_channels),
                "second": spec.stage(channels, channels, (1,), groups=2 * spec.groups),
                "output": spec.stage(channels, spec.out_channels, (), groups=spec.groups),
            }

        @staticmethod
        def stage_weights(decomposition):
            raise NotImplementedError

    for groups, kind in itertools.product((1, 2), (nn.Conv2d, nn.ConvTranspose2d)):
        spec = td.ConvSpec.of(kind(8, 12, (3, 2), stride=(2, 1), padding=1, groups=groups))
        layer = Depthwise(spec, 2, dtype=torch.float64)
        x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
        assert torch.allclose(layer(x), layer.to_conv()(x), rtol=0, atol=1e-10)
