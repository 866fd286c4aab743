"""What every factorized layer promises, for every registered method and kind of layer."""

import copy
import math
import pickle
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

import tdcompress as td
from tdcompress.decompositions.options import TensorlyOptions
from tdcompress.layers.kinds import KINDS, default_kind, kind_of
from tdcompress.methods import METHODS, taking
from tdcompress.ranks import kept_share
from tests.drawing import cases, each_once
from tests.layers.strategies import (
    DTYPES,
    a_spec,
    an_input,
    axes_of,
    error_of,
    factorize,
    fresh,
    full_rank,
    kinds,
    layers,
    modes_of,
    parameters_of,
    ranks,
    side,
)

METHOD_NAMES = sorted(METHODS)
# PyTorch's word on even kernels with "same" padding, for the dense convolution and its stages alike.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
EXACT = 1e-10


def difference(one, other):
    return float((one - other).detach().abs().max())


@pytest.mark.parametrize("method", METHOD_NAMES)
@cases(200)
@given(data=st.data())
def test_full_rank_is_the_original(method, data):
    dense = data.draw(layers(method))
    layer = factorize(dense, method, rank=full_rank(dense, method))
    x = an_input(dense)
    assert layer.weight.shape == dense.weight.shape
    assert difference(layer.weight, dense.weight) <= EXACT
    assert difference(layer(x), dense(x)) <= EXACT
    assert layer.solution.relative_error <= EXACT


@pytest.mark.parametrize("method", METHOD_NAMES)
@cases(250)
@given(data=st.data())
def test_any_rank_is_the_dense_layer_of_its_own_weight_forward_and_backward(method, data):
    dense = data.draw(layers(method))
    rank = data.draw(ranks(dense, method))
    layer = factorize(dense, method, rank=rank)
    assert layer.ranks == rank
    assert parameters_of(layer) == layer.groups * METHODS[method].parameters_at(modes_of(dense, method), rank)
    norm = dense.weight.norm()  # of an embedding whose only row is its padding it is zero
    expected = ((dense.weight - layer.weight).norm() / norm.clamp(min=1e-300)).detach()
    assert layer.solution.relative_error == pytest.approx(float(expected), abs=1e-9)
    assert type(layer.to_conv()) is type(dense)
    x = an_input(dense)
    through_stages = layer(x)
    through_weight = functional_call(dense, {"weight": layer.weight, **biases(layer)}, x)
    assert difference(through_stages, through_weight) <= EXACT
    assert difference(through_stages, layer.to_conv()(x)) <= EXACT
    if getattr(dense, "sparse", False):  # PyTorch has no sparse gradients through a weight that is computed
        return
    leaves, probe = list(layer.parameters()), an_input_like(through_stages)
    if x.is_floating_point():
        leaves.append(x.requires_grad_())
        through_stages, through_weight = (
            layer(x), functional_call(dense, {"weight": layer.weight, **biases(layer)}, x)
        )  # fmt: skip
    ours, theirs = (torch.autograd.grad(out, leaves, probe) for out in (through_stages, through_weight))
    for one, other in zip(ours, theirs, strict=True):
        assert difference(one, other) <= EXACT * (1 + float(other.abs().max()))


def biases(layer):
    return {} if layer.bias is None else {"bias": layer.bias}


def an_input_like(output):
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)


@pytest.mark.parametrize("method", METHOD_NAMES)
@cases(100)
@given(data=st.data(), ratio=st.floats(0.01, 0.99))
def test_the_budget_is_never_exceeded_and_used_to_the_next_step(method, data, ratio):
    kind, dense = METHODS[method], data.draw(layers(method))
    spec, numel = td.ConvSpec.of(dense), dense.weight.numel()
    if smallest(kind, spec) > kept_share(ratio) * numel:
        with pytest.raises(td.CompressionError, match=r"can be reached is|cannot make this layer smaller|has no shape"):
            kind.from_conv(dense, ratio=ratio)
        return
    layer = kind.from_conv(dense, ratio=ratio)
    modes = kind.modes_of(layer.spec, layer.axes)
    kept = parameters_of(layer)
    assert kept <= kept_share(ratio) * numel
    assert kept == spec.groups * kind.parameters_at(modes, layer.ranks)
    assert layer.ratio == pytest.approx(1 - kept / numel)
    assert difference(layer(an_input(dense)), layer.to_conv()(an_input(dense))) <= EXACT
    for place in range(len(layer.ranks)):
        step = tuple(r + (i == place) for i, r in enumerate(layer.ranks))
        if useful(method, modes, step, place):
            assert spec.groups * kind.parameters_at(modes, step) > kept_share(ratio) * numel


def smallest(kind, spec):
    try:
        return kind.least(spec, kind.options())
    except td.CompressionError:  # no way to read the layer
        return math.inf


def useful(method, modes, rank, place):
    """Whether every entry can be filled by its neighbours, and the raised one is up to the method."""
    if any(r > limit for r, limit in zip(rank, METHODS[method].full_rank(modes), strict=True)):
        return False
    spatial = math.prod(modes[2:])
    if method == "tucker":
        return rank[0] <= rank[1] * spatial and rank[1] <= rank[0] * spatial
    if method == "ht":
        return all(r * r <= math.prod(rank) for r in rank)
    if method == "tr":
        sizes, full = (modes[1], *modes[2:], modes[0]), METHODS[method].full_rank(modes)
        ring = zip(rank, sizes, (*rank[1:], rank[0]), strict=True)
        exact = rank[0] > 1 and rank[1:] == full[1:]  # one slice is
        return not exact and all(left <= size * right and right <= size * left for left, size, right in ring)
    if method == "btd":
        blocks, *sizes = rank  # of which the sizes are as they were asked for
        return place == 0 and (blocks - 1) * min(sizes) < math.prod(modes) // max(*modes[:2], spatial)
    if method in ("tt", "ttm"):
        cores = [out * inner for out, inner in zip(modes[0::2], modes[1::2], strict=False)]
        lengths = [modes[1], *modes[2:], modes[0]] if method == "tt" else cores
        chain = zip((1, *rank), lengths, (*rank, 1), strict=True)
        return all(left <= size * right and right <= size * left for left, size, right in chain)
    return True


@pytest.mark.parametrize("method", METHOD_NAMES)
@cases(60)
@given(data=st.data())
def test_every_dtype_keeps_its_own_precision(method, data):
    dense = data.draw(layers(method, DTYPES))
    dtype = dense.weight.dtype
    layer = factorize(dense, method, rank=full_rank(dense, method))
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(an_input(dense, dtype)).dtype == dtype
    # Every stage is rounded once; CP's terms at full rank do not cancel.
    assert layer.solution.relative_error <= 4 * len(layer) * torch.finfo(dtype).eps
    layer, x = layer.double(), an_input(dense)
    assert difference(layer(x), layer.to_conv()(x)) <= EXACT


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_it_is_a_sequence_of_plain_convolutions_with_the_bias_last_and_says_what_was_done(method):
    layer: Any = td.decompose(nn.Conv2d(16, 12, side(method), padding=1), "", method, 0.5)
    assert all(type(stage) is nn.Conv2d for stage in layer.weighted)
    assert isinstance(layer, nn.Sequential)
    assert [stage.bias is not None for stage in layer] == [False] * (len(layer) - 1) + [True]
    assert f"rank={layer.rank}" in repr(layer)
    assert "relative_error=0." in repr(layer)


@pytest.mark.parametrize(("method", "kind"), each_once((name, kind) for name in METHOD_NAMES for kind in kinds(name)))
def test_the_stages_are_of_the_layers_own_kind_and_its_attributes_are_kept(method, kind):
    extra = {"has_bias": False} | ({} if "Transpose" in kind else {"padding_mode": "reflect"})
    dense = fresh(a_spec(kind, side(method), **(extra if axes_of(kind) else {})))
    layer: Any = td.decompose(dense, "", method, 0.3)
    own = {kind, *(default_kind(axes_of(kind), False, groups) for groups in (1, 2))}
    assert {getattr(kind_of(stage), "name", None) for stage in layer.weighted} <= own
    for name in set(vars(dense)) - set(vars(nn.Module())):
        if not name.startswith("_"):
            assert getattr(layer, name) == getattr(dense, name), name
    assert type(layer.to_conv()) is type(dense)
    assert td.ConvSpec.of(layer.to_conv()) == td.ConvSpec.of(dense) == layer.spec


@pytest.mark.parametrize(("method", "dtype"), each_once(product(METHOD_NAMES, DTYPES)))
def test_dtype_training_mode_and_requires_grad_are_kept(method, dtype):
    conv = nn.Conv2d(16, 16, side(method), dtype=dtype).eval()
    conv.weight.requires_grad_(False)
    layer: Any = td.decompose(conv, "", method, 0.5)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert not layer.training
    assert not any(stage.weight.requires_grad for stage in layer.weighted)
    assert layer.bias.requires_grad
    assert 0 < layer.solution.relative_error < 1


@pytest.mark.parametrize(("method", "build"), each_once(product(METHOD_NAMES, [nn.Conv2d, nn.ConvTranspose2d])))
def test_the_memory_format_is_kept_there_and_back(method, build):
    dense = build(16, 16, side(method)).to(memory_format=torch.channels_last)
    layer: Any = td.decompose(dense, "", method, 0.5)
    like: Any = torch.nn.Sequential(*(copy.deepcopy(stage) for stage in layer))
    like.to(memory_format=torch.channels_last)
    weights = [[one.weight.stride() for one in some if hasattr(one, "weight")] for some in (layer, like)]
    assert weights[0] == weights[1]
    assert layer.to_conv().weight.stride() == dense.weight.stride()
    plain: Any = td.decompose(build(16, 16, side(method)), "", method, 0.5)
    assert all(stage.weight.is_contiguous() and stage.weight.stride(-1) == 1 for stage in plain.weighted)


@pytest.mark.parametrize("method", [name for name in METHOD_NAMES if not METHODS[name].takes_linear])
def test_a_linear_layer_is_refused_with_the_method_that_suits_it(method):
    for kind in KINDS:
        if not axes_of(kind):
            layer = fresh(a_spec(kind))
            known = " or ".join(map(repr, taking(td.ConvSpec.of(layer))))
            refusal = f"{method} is for convolutions; the weight of this {kind} is a matrix. Take"
            with pytest.raises(td.CompressionError, match=f"{refusal} method {known}"):
                td.decompose(layer, "", method, 0.5)
            with pytest.raises(td.CompressionError, match=f"{refusal} another method"):
                METHODS[method].from_conv(layer, ratio=0.5)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_same_seed_same_bits_and_global_generators_unmoved(method):
    conv = nn.Conv2d(16, 16, side(method))
    state = torch.random.get_rng_state()
    one, two = (td.decompose(conv, "", method, 0.7, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_copy_pickle_compile_and_slices(method):
    conv = nn.Conv2d(8, 8, side(method), padding=1)
    layer: Any = td.decompose(conv, "", method, 0.3).eval()
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
    conv = nn.Conv2d(12, 16, side(method), padding=1)
    if not issubclass(METHODS[method].options, TensorlyOptions):
        with pytest.raises(td.CompressionError, match="tensorly has no solver for this method"):
            METHODS[method].from_conv(conv, ratio=0.5, solver="tensorly")
        return
    layer = METHODS[method].from_conv(conv, ratio=0.5, solver="tensorly")
    ours = METHODS[method].from_conv(conv, ratio=0.5)
    assert len(layer.ranks) == len(ours.ranks)
    assert 0 < error_of(layer) < 1
    assert error_of(ours) <= error_of(layer) * 1.02


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_fresh_layer_can_be_built_from_a_spec_and_a_rank(method):
    spec = td.ConvSpec.of(nn.Conv2d(8, 8, side(method), padding=1))
    rank = tuple(2 for _ in full_rank(nn.Conv2d(8, 8, side(method)), method))
    layer = METHODS[method](spec, rank, dtype=torch.float64)
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    assert layer.solution is None
    assert layer.ranks == rank
    assert layer.rank == (2 if isinstance(layer.rank, int) else rank)
    assert difference(layer(x), layer.to_conv()(x)) <= EXACT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_on_a_gpu_the_layer_stays_there_and_loses_as_little(method):
    conv = nn.Conv2d(64, 64, side(method), padding=1)
    here: Any = td.decompose(conv, "", method, 0.75)
    there: Any = td.decompose(conv.cuda(), "", method, 0.75)
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    assert there.solution.relative_error == pytest.approx(here.solution.relative_error, rel=1e-2)
