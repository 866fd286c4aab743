"""What a stack does on a CPU when its stages do not run one by one: the same, and only then."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import tdcompress as td
from tdcompress.layers.eager import EagerStack
from tdcompress.methods import METHODS
from tests.layers.strategies import PADDING_MODES, SEEDS, a_spec, for_kernels

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*makes the layer larger", "ignore:Using padding='same' with even kernel lengths"
)

RANKS = {"ht": (5, 4, 3), "tr": (3, 3, 4, 4)}  # that are worth merging, and more than one slice
METHODS_OF_STACKS = [method for method in for_kernels() if method != "svd"]


def a_layer(method, dtype=torch.float64, **how):
    spec = td.ConvSpec.of(nn.Conv2d(16, 12, **{"kernel_size": 3, "padding": 1, **how}, device="meta"))
    rank = RANKS["tr"][: 2 + len(spec.kernel_axes)] if method == "tr" else RANKS.get(method, 2)
    return METHODS[method](spec, rank, dtype=dtype)


def an_image(dtype=torch.float64, seed=0, size=(3, 16, 13, 12)):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def runs(monkeypatch):
    """How often a stack did not run stage by stage."""
    counted, is_free = [], EagerStack._is_free

    def counting(layer, inputs):
        counted.extend([1] * (free := is_free(layer, inputs)))
        return free

    monkeypatch.setattr(EagerStack, "_is_free", counting)
    return counted


@pytest.mark.parametrize("method", METHODS_OF_STACKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@given(
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, (1, 0), 2, "valid"]),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(PADDING_MODES),
    size=st.sampled_from([(3, 16, 13, 12), (9, 16, 6, 7)]),
    seed=SEEDS,
)
def test_outputs_and_gradients_are_those_of_the_stages(
    method, memory_format, stride, dilation, padding, groups, mode, size, seed
):
    layer = a_layer(
        method, stride=(stride, 1), dilation=(1, dilation), padding=padding, groups=groups, padding_mode=mode
    )
    x, stages = an_image(seed=seed, size=size).to(memory_format=memory_format), nn.Sequential(*layer)
    assert layer._is_free(x)
    with torch.no_grad():
        found, expected = layer(x), stages(x)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert found.stride() == expected.stride()
    ours, theirs = (torch.autograd.grad(run(x).square().sum(), list(layer.parameters())) for run in (layer, stages))
    assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-9) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("method", sorted({*METHODS} - {*for_kernels()}))
def test_a_matrix_that_is_read_through_a_grid_goes_stage_by_stage(method, runs):
    layer, x = METHODS[method](a_spec("Conv2d", 1, groups=1), 2, dtype=torch.float64), an_image()
    assert torch.equal(layer(x), nn.Sequential(*layer)(x))
    assert not runs


@pytest.mark.parametrize("method", METHODS_OF_STACKS)
def test_volumes_are_those_of_the_stages(method):
    layer = METHODS[method](a_spec("Conv3d"), 2, dtype=torch.float64)
    x = an_image(size=(2, 16, 6, 7, 5))
    with torch.no_grad():
        assert torch.allclose(layer(x), nn.Sequential(*layer)(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["cp", "ht", "tr"])
def test_what_is_between_the_ends_is_one_convolution(method, runs):
    layer = a_layer(method)
    weight = layer.middle_weight()
    assert weight.shape[2:] == (3, 3)
    slices = RANKS["tr"][0] if method == "tr" else 1  # which share it
    assert slices * weight.shape[0] == layer[-1].in_channels or method == "ht"  # whose transfer stage is merged, too
    layer(an_image())
    assert runs


@pytest.mark.parametrize("dilation", [1, (1, 3)])
@pytest.mark.parametrize("padding", [0, (2, 1), "same", "valid"], ids=str)
@pytest.mark.parametrize("kernel_size", [(3, 4), (4, 3), (1, 5), (5, 1)], ids=str)
def test_slices_of_a_ring_meet_only_themselves(kernel_size, padding, dilation):
    layer = a_layer("tr", kernel_size=kernel_size, padding=padding, dilation=dilation, groups=1)
    strided = a_layer("tr", kernel_size=kernel_size, padding=0, stride=(1, 2), dilation=dilation)
    for one in (layer, strided):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = an_image(size=(3, 16, 13, 17)).to(memory_format=memory_format)
            found, expected = one(x), nn.Sequential(*one)(x)
            assert found.stride() == expected.stride()
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_an_image_that_is_too_small_for_a_ring_gets_pytorchs_message():
    with pytest.raises(RuntimeError, match=re.escape("input size per channel: (40 x 4). Kernel size: (1 x 5)")):
        a_layer("tr", kernel_size=(1, 5), padding=0)(an_image(size=(2, 16, 40, 4)))


@pytest.mark.parametrize("how", [{"kernel_size": 7}, {"padding_mode": "reflect"}], ids=str)
def test_wide_kernels_and_padding_by_what_is_there_are_not_merged(how):
    assert a_layer("cp", **how).middle_weight() is None


@pytest.mark.parametrize("method", METHODS_OF_STACKS)
def test_autocast_rounds_as_it_does_for_the_stages(method):
    layer, x = a_layer(method, torch.float32), an_image(torch.float32)
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, stages = layer(x), nn.Sequential(*layer)(x)
    assert found.dtype == stages.dtype == torch.bfloat16
    ours, theirs = ((one.float() - exact).norm() for one in (found, stages))
    assert ours < 1.5 * theirs


def test_hooks_on_stages_see_them(runs):
    layer, seen = a_layer("cp"), []
    handle = layer[1].register_forward_hook(lambda stage, given, output: seen.append(output.shape))
    layer(an_image())
    assert len(seen) == 1
    assert not runs
    handle.remove()
    layer(an_image())
    assert runs


def test_hooks_on_all_modules_see_stages(runs):
    seen, handle = [], nn.modules.module.register_module_forward_hook(lambda stage, *_: seen.append(type(stage)))
    with handle:
        a_layer("cp")(an_image())
    assert seen.count(nn.Conv2d) == 4
    assert not runs


def test_parametrized_and_replaced_stages_run_as_what_they_are(runs):
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    x, layer = an_image(), a_layer("tucker")
    whole = layer(x)
    parametrize.register_parametrization(layer[1], "weight", Halved())
    bias = layer.bias[:, None, None]
    assert torch.allclose(layer(x) - bias, (whole - bias) / 2)
    replaced = a_layer("cp")
    replaced[2] = nn.Identity()
    assert replaced(x).shape[1] == 12
    assert len(runs) == 1


@pytest.mark.parametrize("x", [an_image(size=(1, 16, 5, 5)), an_image(size=(16, 13, 12)), an_image(size=(0, 16, 9, 9))])
def test_few_positions_single_and_no_images_go_stage_by_stage(x, runs):
    layer = a_layer("cp")
    assert torch.equal(layer(x), nn.Sequential(*layer)(x))
    assert not runs


def test_a_wrong_number_of_channels_gets_pytorchs_message():
    with pytest.raises(RuntimeError, match="to have 16 channels, but got 15"):
        a_layer("cp")(an_image(size=(3, 15, 13, 12)))


def test_vectorized_over_models_and_differentiated_twice():
    layer, x = a_layer("tr"), an_image(size=(2, 16, 9, 8))
    stages = nn.Sequential(*layer)
    assert torch.allclose(torch.vmap(layer)(x[None].expand(2, -1, -1, -1, -1))[1], stages(x))
    assert torch.allclose(*(torch.func.jacrev(run)(x).flatten(4).sum(-1) for run in (layer, stages)))
