"""What every factorized convolution promises, for every registered method and kind of convolution."""

import copy
import pickle
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
METHOD_NAMES = sorted(METHODS)
# PyTorch's word on even kernels with "same" padding, for the dense convolution and its stages alike.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
EXACT = 1e-10


@st.composite
def convolutions(draw):
    """Any float64 convolution that PyTorch accepts, small enough to be quick."""
    ndim = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(ndim))
    padding = draw(st.sampled_from(["numbers", "same", "valid"]))
    stride = (1,) * ndim if padding == "same" else tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    with torch.random.fork_rng():
        torch.manual_seed(draw(st.integers(0, 1000)))
        return KINDS[ndim](
            groups * draw(st.integers(1, 4)),
            groups * draw(st.integers(1, 4)),
            kernel,
            stride=stride,
            padding=tuple(draw(st.integers(0, 2)) for _ in range(ndim)) if padding == "numbers" else padding,
            dilation=tuple(draw(st.integers(1, 2)) for _ in range(ndim)),
            groups=groups,
            bias=draw(st.booleans()),
            padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
            dtype=torch.float64,
        )


def an_input(conv, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [7 + 2 * axis for axis in range(len(conv.kernel_size))]
    return torch.randn(2, conv.in_channels, *sizes, generator=generator, dtype=torch.float64)


def factorize(conv, method, **how):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*makes the layer larger", category=UserWarning)
        return METHODS[method].from_conv(conv, **how)


def full_rank(conv, method):
    return METHODS[method].full_rank(modes_of(conv, method))


def modes_of(conv, method):
    spec = td.ConvSpec.of(conv)
    return spec.modes(METHODS[method].arrangements(spec.long_axes, None)[0])


def difference(one, other):
    return float((one - other).detach().abs().max())


@pytest.mark.parametrize("method", METHOD_NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conv=convolutions())
def test_full_rank_is_the_original(method, conv):
    layer = factorize(conv, method, rank=full_rank(conv, method))
    x = an_input(conv)
    assert difference(layer.weight, conv.weight) <= EXACT
    assert difference(layer(x), conv(x)) <= EXACT
    assert layer.solution.relative_error <= EXACT


@pytest.mark.parametrize("method", METHOD_NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conv=convolutions(), data=st.data())
def test_any_rank_is_the_dense_convolution_of_its_own_weight(method, conv, data):
    rank = [data.draw(st.integers(1, limit), label="rank") for limit in full_rank(conv, method)]
    modes = modes_of(conv, method)
    if method == "tt" and any(
        right > left * size for left, size, right in zip((1, *rank), (modes[1], *modes[2:]), rank, strict=False)
    ):
        with pytest.raises(td.CompressionError, match="the largest feasible is"):
            factorize(conv, method, rank=rank)
        return
    layer = factorize(conv, method, rank=rank)
    x = an_input(conv)
    dense = layer.to_conv()
    assert type(dense) is type(conv)
    assert layer.weight.shape == conv.weight.shape
    assert difference(layer(x), dense(x)) <= EXACT
    expected = ((conv.weight - layer.weight).norm() / conv.weight.norm()).detach()
    assert layer.solution.relative_error == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("method", METHOD_NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conv=convolutions(), ratio=st.floats(0.01, 0.99))
def test_the_budget_is_never_exceeded_and_used_to_the_next_step(method, conv, ratio):
    kind, modes, numel = METHODS[method], modes_of(conv, method), conv.weight.numel()
    ones = tuple(1 for _ in kind.full_rank(modes))
    smallest = conv.groups * kind.parameters_at(modes, ones)
    if smallest / numel > 1 - ratio:
        with pytest.raises(td.CompressionError, match=r"can be reached is|cannot make this layer smaller"):
            kind.from_conv(conv, ratio=ratio)
        return
    layer = kind.from_conv(conv, ratio=ratio)
    modes = layer.spec.modes(layer.axes)
    kept = sum(stage.weight.numel() for stage in layer)
    assert kept / numel <= 1 - ratio
    assert kept == conv.groups * kind.parameters_at(modes, layer.ranks)
    assert layer.ratio == pytest.approx(1 - kept / numel)
    for place in range(len(layer.ranks)):
        step = tuple(r + (i == place) for i, r in enumerate(layer.ranks))
        if useful(method, modes, step):
            assert conv.groups * kind.parameters_at(modes, step) / numel > 1 - ratio


def useful(method, modes, rank):
    """Whether every entry can be filled by its neighbours."""
    if any(r > limit for r, limit in zip(rank, METHODS[method].full_rank(modes), strict=True)):
        return False
    spatial = 1
    for size in modes[2:]:
        spatial *= size
    if method == "tucker":
        return rank[0] <= rank[1] * spatial and rank[1] <= rank[0] * spatial
    if method == "tt":
        sizes = (modes[1], *modes[2:], modes[0])
        chain = zip((1, *rank), sizes, (*rank, 1), strict=True)
        return all(left <= size * right and right <= size * left for left, size, right in chain)
    return True


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_it_is_a_sequence_of_plain_convolutions_with_the_bias_last(method):
    layer = td.decompose(nn.Conv2d(16, 12, 3, padding=1), "", method, 0.5)
    assert isinstance(layer, nn.Sequential)
    assert all(type(stage) is nn.Conv2d for stage in layer)
    assert [stage.bias is not None for stage in layer] == [False] * (len(layer) - 1) + [True]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_attributes_of_the_convolution_are_kept(method):
    conv = nn.Conv2d(
        8, 12, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2, padding_mode="reflect", bias=False
    )
    layer = td.decompose(conv, "", method, 0.5)
    for name in "in_channels out_channels kernel_size stride padding dilation groups padding_mode bias".split():
        assert getattr(layer, name) == getattr(conv, name)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_training_mode_and_requires_grad_are_kept(method, dtype):
    conv = nn.Conv2d(16, 16, 3, dtype=dtype).eval()
    conv.weight.requires_grad_(False)
    layer = td.decompose(conv, "", method, 0.5)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert not layer.training
    assert not any(stage.weight.requires_grad for stage in layer)
    assert layer.bias.requires_grad
    assert 0 < layer.solution.relative_error < 1


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_gradients_reach_every_factor_as_they_do_through_the_dense_weight(method):
    conv = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.float64)
    layer = td.decompose(conv, "", method, 0.4)
    x = an_input(conv)
    layer(x).square().sum().backward()
    direct = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    nn.functional.conv2d(x, layer.weight, layer.bias, padding=1).square().sum().backward()
    for one, other in zip(direct, layer.parameters(), strict=True):
        assert torch.allclose(one, other.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_same_seed_same_bits_and_global_generators_unmoved(method):
    conv = nn.Conv2d(16, 16, 3)
    state = torch.random.get_rng_state()
    one, two = (td.decompose(conv, "", method, 0.7, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_copy_pickle_compile_and_slices(method):
    conv = nn.Conv2d(8, 8, 3, padding=1)
    layer = td.decompose(conv, "", method, 0.5).eval()
    x = torch.randn(2, 8, 6, 6)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), expected)
        assert other.rank == layer.rank
        assert other.solution == layer.solution
    assert type(layer[:2]) is nn.Sequential
    assert torch.equal(layer[2:](layer[:2](x)), expected)
    graph = torch.export.export(layer, (x,)).module()
    assert torch.allclose(graph(x), expected, atol=1e-6)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_tensorly_solver_gives_a_valid_layer(method):
    conv = nn.Conv2d(12, 16, 3, padding=1)
    layer = METHODS[method].from_conv(conv, ratio=0.5, solver="tensorly")
    ours = METHODS[method].from_conv(conv, ratio=0.5)
    assert len(layer.ranks) == len(ours.ranks)
    assert 0 < layer.solution.relative_error < 1
    assert ours.solution.relative_error <= layer.solution.relative_error * 1.02


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_repr_tells_what_was_done(method):
    layer = td.decompose(nn.Conv2d(16, 16, 3), "", method, 0.5)
    assert f"rank={layer.rank}" in repr(layer)
    assert "relative_error=0." in repr(layer)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_fresh_layer_can_be_built_from_a_spec_and_a_rank(method):
    spec = td.ConvSpec.of(nn.Conv2d(8, 8, 3, padding=1))
    rank = tuple(2 for _ in full_rank(nn.Conv2d(8, 8, 3), method))
    layer = METHODS[method](spec, rank, dtype=torch.float64)
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    assert layer.solution is None
    assert layer.ranks == rank
    assert layer.rank == (2 if method == "cp" else rank)
    assert difference(layer(x), layer.to_conv()(x)) <= EXACT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_on_a_gpu_the_layer_stays_there_and_loses_as_little(method):
    conv = nn.Conv2d(64, 64, 3, padding=1)
    here = td.decompose(conv, "", method, 0.75)
    there = td.decompose(conv.cuda(), "", method, 0.75)
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    assert there.solution.relative_error == pytest.approx(here.solution.relative_error, rel=1e-2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conv=convolutions(), data=st.data())
def test_cp_with_one_joint_spatial_stage_keeps_the_contract(conv, data):
    joint = td.CPOptions(spatial="joint")
    spec = td.ConvSpec.of(conv)
    (axes,) = td.CPConv.arrangements(spec.long_axes, joint)
    (full,) = td.CPConv.full_rank(spec.modes(axes))
    x = an_input(conv)
    assert difference(factorize(conv, "cp", rank=full, solver=joint)(x), conv(x)) <= EXACT
    layer = factorize(conv, "cp", rank=data.draw(st.integers(1, full)), solver=joint)
    assert len(layer) == (3 if spec.long_axes else 2)
    assert difference(layer(x), layer.to_conv()(x)) <= EXACT


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conv=convolutions(), data=st.data())
def test_a_tensor_train_in_any_order_of_the_axes_keeps_the_contract(conv, data):
    spec = td.ConvSpec.of(conv)
    axes = data.draw(st.sampled_from(td.TTConv.arrangements(spec.long_axes, None)))
    layer = td.TTConv(spec, 1, axes, dtype=torch.float64)
    x = an_input(conv)
    assert difference(layer(x), layer.to_conv()(x)) <= EXACT


def test_the_rule_counts_the_joint_mode_as_one():
    conv = nn.Conv2d(64, 64, 7)
    joint = td.CPConv.from_conv(
        conv, ratio=0.9, rank="tensorly-torch", solver=td.CPOptions(spatial="joint", max_iter=1)
    )
    assert joint.rank == round(0.1 * conv.weight.numel() / (64 + 64 + 49))


def test_the_better_order_of_the_axes_is_taken_unless_told_or_a_rank_is_given():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(8, 8, (5, 3))
        conv.weight.data += 3 * torch.randn(1, 1, 5, 1)
    best = td.TTConv.from_conv(conv, ratio=0.6)
    given_order = td.TTConv.from_conv(conv, ratio=0.6, solver=td.TTOptions(orders="given"))
    assert given_order.axes == ((0,), (1,))
    assert best.solution.relative_error <= given_order.solution.relative_error
    assert td.TTConv.from_conv(conv, rank=(3, 3, 3)).axes == ((0,), (1,))
