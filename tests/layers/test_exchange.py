"""Factorized layers as tensorly's classes, and back, against tensorly's own reconstruction."""

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import parafac, partial_tucker, tensor_train, tucker
from torch import nn

import tdcompress as td
from tdcompress.decompositions.algebra import relative_error
from tdcompress.decompositions.bridge import tensorly_on_torch
from tdcompress.layers.exchange import Exchange
from tdcompress.layers.grid import as_reshape_of
from tdcompress.methods import METHODS
from tests.drawing import cases
from tests.layers.strategies import a_spec, axes_of, factorize, kinds, layers, ranks
from tests.layers.test_contract import EXACT, METHOD_NAMES, difference

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel lengths", "ignore:.*makes the layer larger"
)
TO_TENSOR = {
    "CPTensor": tensorly.cp_to_tensor,
    "TTMatrix": tensorly.tt_matrix.tt_matrix_to_tensor,
    "TRTensor": tensorly.tr_tensor.tr_to_tensor,
    "TTTensor": tensorly.tt_to_tensor,
    "TuckerTensor": tensorly.tucker_to_tensor,
}


@pytest.fixture(autouse=True)
def on_torch():
    """tensorly on PyTorch, as whoever computes with a layer's factors has it; in this thread alone."""
    with tensorly_on_torch():
        yield


def exchangeable(method):
    """Whether tensorly has a class for a layer of this method, of some kind."""
    return any(METHODS[method].forms(a_spec(kind)) for kind in kinds(method))


def dense(tensor):
    return TO_TENSOR[type(tensor).__name__](tensor)


def kernels_of(layer):
    """The dense kernels that tensorly makes of a layer's factors, (groups, out / groups, in / groups, *kernel_size)."""
    found = layer.to_tensorly()
    assert isinstance(found, list) == (layer.groups > 1)
    found = [dense(one) for one in (found if layer.groups > 1 else [found])]
    if layer.method in ("tt", "tr"):
        found = [one.movedim(-1, 0) for one in found]
    if layer.method == "ttm":  # (*rows, *columns)
        reshape, count = as_reshape_of(layer.axes), len(layer.axes[0])
        pairs = [axis for core in range(count) for axis in (core, core + count)]
        found = [reshape.to_matrix(one.permute(pairs)) for one in found]
    return torch.stack(found)


@pytest.mark.parametrize("method", [name for name in METHOD_NAMES if exchangeable(name)])
@cases(100)
@given(data=st.data())
def test_tensorly_rebuilds_the_kernel_and_the_layer_comes_back(method, data):
    plain = data.draw(layers(method))
    layer = factorize(plain, method, rank=data.draw(ranks(plain, method)))
    kernels = layer.spec.to_kernels(layer.weight)
    assert difference(kernels_of(layer).reshape(kernels.shape), kernels) <= EXACT
    back = type(layer).from_tensorly(layer.to_tensorly(), like=plain)
    assert back.spec == layer.spec
    assert back.ranks == layer.ranks
    assert back.axes == layer.axes
    for ours, theirs in zip(layer.parameters(), back.parameters(), strict=True):
        assert difference(ours, theirs) <= EXACT


class Unknown(td.CPConv):
    """A method that says nothing of tensorly."""

    method = "unknown"
    forms, form, of_form = (vars(Exchange)[name] for name in ("forms", "form", "of_form"))


def test_what_tensorly_has_no_class_for_is_refused_in_both_directions():
    layer = Unknown.from_conv(CONV, rank=4)
    with pytest.raises(td.CompressionError, match="tensorly has no class for the factors of method 'unknown'"):
        layer.to_tensorly()
    with pytest.raises(td.CompressionError, match="unknown is not made of a CPTensor"):
        Unknown.from_tensorly(CP, like=CONV)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_new_layer_is_like_the_old_one_in_all_but_its_factors(dtype):
    conv = nn.Conv2d(16, 12, 3, stride=2, padding=1, dtype=dtype).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    conv.weight.requires_grad_(False)
    found = parafac(conv.weight.detach().double(), 5, init="random", random_state=0)
    layer = td.CPConv.from_tensorly(found, like=conv)
    assert layer.spec == td.ConvSpec.of(conv)
    assert {one.dtype for one in layer.parameters()} == {dtype}
    assert layer[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert not layer.training
    assert [one.requires_grad for one in layer.parameters()] == [False] * 4 + [True]
    assert layer.bias is not None
    assert torch.equal(layer.bias, conv.bias)
    assert layer.bias is not conv.bias
    assert layer.solution is None
    eps = torch.finfo(dtype).eps
    assert relative_error(dense(found), layer.double().weight.detach()) <= 4 * eps


def a_conv(in_channels, out_channels, kernel_size, **how):
    torch.manual_seed(0)
    return nn.Conv2d(in_channels, out_channels, kernel_size, **how, dtype=torch.float64)


def check(layer, kernel, conv):
    """The layer does what the dense one with this kernel does."""
    assert difference(layer.weight, kernel) <= EXACT
    x = torch.randn(2, conv.in_channels, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(kernel)
    assert difference(layer(x), conv(x)) <= EXACT


@pytest.mark.parametrize("size", [(3, 3), (1, 3), (3, 1), (1, 1)])
def test_weights_of_either_sign_go_into_the_factors_of_a_cp(size):
    conv = a_conv(6, 8, size, padding="same")
    weights = torch.tensor([3.0, -2.0, 0.0], dtype=torch.float64)
    factors = [torch.randn(n, 3, dtype=torch.float64) for n in conv.weight.shape]
    layer = td.CPConv.from_tensorly(tensorly.cp_tensor.CPTensor((weights, factors)), like=conv)
    check(layer, tensorly.cp_to_tensor((weights, factors)), conv)
    share = layer[-1].weight.detach()[:, 0].norm() / factors[0][:, 0].norm()
    assert share.item() == pytest.approx(3 ** (1 / 4))  # the first weight, spread over four factors


def test_a_cp_of_merged_axes_comes_back_merged():
    conv = a_conv(6, 8, 3)
    layer = td.CPConv.from_conv(conv, rank=4).merge_spatial()
    assert layer.to_tensorly().shape == (8, 6, 9)
    for back in (
        td.CPConv.from_tensorly(layer.to_tensorly(), like=layer),
        td.CPConv.from_tensorly(layer.to_tensorly(), like=conv, axes=((0, 1),)),
    ):
        assert back.axes == ((0, 1),)
        assert difference(back.weight, layer.weight) <= EXACT


def test_factors_of_all_modes_of_a_tucker_go_into_the_core():
    conv = a_conv(6, 8, 3, stride=2)
    found = tucker(conv.weight.detach(), (5, 4, 2, 1))
    layer = td.TuckerConv.from_tensorly(found, like=conv)
    assert layer.ranks == (5, 4)
    check(layer, dense(found), conv)


def test_a_partial_tucker_is_taken_as_tensorly_gives_it():
    conv = a_conv(6, 8, 3, padding=1)
    (core, factors), _ = partial_tucker(conv.weight.detach(), (5, 4), modes=[0, 1])
    check(td.TuckerConv.from_tensorly((core, factors), like=conv), dense(td_partial(core, factors)), conv)


def td_partial(core, factors):
    whole = [torch.eye(size, dtype=core.dtype) for size in core.shape[2:]]
    return tensorly.tucker_tensor.TuckerTensor((core, [*factors, *whole]))


@pytest.mark.parametrize("rank", [(20, 5), (5, 40), (60, 40), (30, 2), (16, 1)])
@pytest.mark.parametrize("channels", [(2, 30), (30, 2), (6, 8)])
def test_what_a_tucker_cannot_fill_is_cut_without_loss(channels, rank):
    conv = a_conv(channels[0], channels[1], (3, 1))
    core = torch.randn(*rank, 3, 1, dtype=torch.float64)
    factors = [torch.randn(size, r, dtype=torch.float64) for size, r in zip(conv.weight.shape, rank, strict=False)]
    layer = td.TuckerConv.from_tensorly((core, factors), like=conv)
    limits = td.TuckerConv.full_rank(conv.weight.shape)
    assert all(ours <= limit for ours, limit in zip(layer.ranks, limits, strict=True))
    if all(r <= limit for r, limit in zip(rank, limits, strict=True)):
        assert layer.ranks == rank
    expected = dense(td_partial(core, factors))
    assert relative_error(expected, layer.weight.detach()) <= EXACT


@pytest.mark.parametrize("size", [(3, 3), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("bonds", [(30, 9, 55), (2, 3, 4), (1, 40, 1), (70, 70, 70)])
def test_bonds_of_a_train_that_nothing_fills_are_cut_without_loss(size, bonds):
    conv = a_conv(6, 8, size, padding="same")
    sizes = (6, *size, 8)
    cores = [
        torch.randn(before, n, after, dtype=torch.float64)
        for before, n, after in zip((1, *bonds), sizes, (*bonds, 1), strict=True)
    ]
    layer = td.TTConv.from_tensorly(tensorly.tt_tensor.TTTensor(cores), like=conv)
    expected = tensorly.tt_to_tensor(cores).movedim(-1, 0)
    assert relative_error(expected, layer.weight.detach()) <= EXACT
    limits = td.TTConv.full_rank(layer.spec.modes(layer.axes))
    assert all(ours <= limit for ours, limit in zip(layer.ranks, limits, strict=True))
    if size == (3, 3) and bonds == (2, 3, 4):
        assert layer.ranks == bonds


def test_tensorlys_own_train_of_a_kernel_is_taken():
    conv = a_conv(6, 8, 3, padding=2, dilation=2)
    found = tensor_train(conv.weight.detach().movedim(0, -1), [1, 5, 9, 7, 1])
    layer = td.TTConv.from_tensorly(found, like=conv)
    assert layer.ranks == (5, 9, 7)
    check(layer, dense(found).movedim(-1, 0), conv)


def test_a_train_in_another_order_of_the_axes_keeps_it():
    conv = nn.Conv3d(4, 5, (3, 1, 2), dtype=torch.float64)
    layer = td.TTConv.from_conv(conv, rank=(2, 3, 4), axes=((2,), (0,)))
    assert layer.to_tensorly().shape == (4, 2, 3, 1, 5)
    back = td.TTConv.from_tensorly(layer.to_tensorly(), like=layer)
    assert back.axes == layer.axes
    assert difference(back.weight, layer.weight) <= EXACT
    with pytest.raises(td.CompressionError, match=r"shape \(4, 3, 1, 2, 5\), \(in, \*spatial, out\)"):
        td.TTConv.from_tensorly(layer.to_tensorly(), like=conv)


@pytest.mark.parametrize(
    ("size", "bonds", "ranks"),
    [
        ((3, 3), (2, 3, 4, 3), (2, 3, 4, 3)),
        ((1, 3), (2, 3, 4, 3), (2, 4, 3)),
        ((3, 1), (2, 3, 4, 3), (2, 3, 3)),
        ((3, 3), (3, 2, 2, 60), (3, 2, 2, 6)),
        ((3, 1), (3, 2, 2, 60), (3, 2, 6)),
        ((1, 3), (1, 5, 9, 7), (1, 6, 7)),
        ((3, 3), (2, 30, 40, 4), None),
        ((1, 3), (2, 30, 40, 4), None),
    ],
)
def test_a_ring_of_tensorlys_is_taken_and_bonds_that_no_core_can_fill_are_cut_without_loss(size, bonds, ranks):
    conv = a_conv(6, 8, size, padding="same")
    cores = [
        torch.randn(before, n, after, dtype=torch.float64)
        for before, n, after in zip(bonds, (6, *size, 8), (*bonds[1:], bonds[0]), strict=True)
    ]
    ring = tensorly.tr_tensor.TRTensor(cores)
    if ranks is None:  # more than an exact train has, and cores that fill it
        with pytest.raises(td.CompressionError, match="the largest feasible is"):
            td.TRConv.from_tensorly(ring, like=conv)
        return
    for found in (ring, cores):
        layer = td.TRConv.from_tensorly(found, like=conv)
        assert relative_error(dense(ring).movedim(-1, 0), layer.weight.detach()) <= EXACT
        assert layer.ranks == ranks
        assert kernels_of(layer).shape == (1, 8, 6, *size)


def test_a_train_is_a_ring_of_one_slice():
    conv = a_conv(6, 8, 3, stride=2)
    found = tensor_train(conv.weight.detach().movedim(0, -1), [1, 5, 9, 7, 1])
    layer = td.TRConv.from_tensorly(found, like=conv)
    assert layer.ranks == (1, 5, 9, 7)
    check(layer, dense(found).movedim(-1, 0), conv)
    with pytest.raises(td.CompressionError, match="tt is not made of a TRTensor"):
        td.TTConv.from_tensorly(layer.to_tensorly(), like=conv)


@pytest.mark.parametrize("rank", [4, 9, 40])
def test_a_matrix_is_a_sum_of_products_of_vectors_or_a_core_between_two_factors(rank):
    torch.manual_seed(0)
    linear = nn.Linear(6, 8, dtype=torch.float64)
    sides = [torch.randn(size, rank, dtype=torch.float64) for size in (8, 6)]
    core = torch.randn(rank, rank, dtype=torch.float64)
    for found, expected in (((None, sides), sides[0] @ sides[1].T), ((core, sides), sides[0] @ core @ sides[1].T)):
        layer = td.SVDConv.from_tensorly(found, like=linear)
        assert layer.rank == min(6, rank)
        assert difference(layer.weight, expected) <= 10 * EXACT


def test_an_svd_of_patches_is_a_tucker_with_one_factor():
    conv = a_conv(6, 8, 3)
    layer = td.SVDConv.from_conv(conv, rank=5)
    found = layer.to_tensorly()
    assert found.rank == (5, 6, 3, 3)
    assert difference(td.SVDConv.from_tensorly(found, like=conv).weight, layer.weight) <= EXACT
    split = td.SVDConv.from_conv(conv, rank=5, solver=td.SVDOptions(split="spatial"))
    with pytest.raises(td.CompressionError, match="split between two stages"):
        split.to_tensorly()
    with pytest.raises(td.CompressionError, match="split between two stages"):
        td.SVDConv.from_tensorly(found, like=split)


def test_factors_of_numpy_are_taken():
    conv = nn.Conv1d(6, 8, 3, dtype=torch.float64)
    factors = [np.random.default_rng(0).standard_normal((size, 2)) for size in conv.weight.shape]
    layer = td.CPConv.from_tensorly((None, factors), like=conv)
    expected = np.einsum("ar,br,cr->abc", *factors)
    assert difference(layer.weight, torch.from_numpy(expected)) <= EXACT


def test_a_factor_of_one_term_may_be_a_vector():
    conv = nn.Conv1d(6, 8, 3, dtype=torch.float64)
    factors = [torch.randn(size, dtype=torch.float64) for size in conv.weight.shape]
    layer = td.CPConv.from_tensorly((None, factors), like=conv)
    assert difference(layer.weight, torch.einsum("a,b,c->abc", *factors)) <= EXACT


def test_what_is_given_shares_no_memory_and_has_no_gradients():
    layer = td.CPConv.from_conv(nn.Conv2d(6, 8, 3), rank=4)
    before = layer.weight.detach().clone()
    found = layer.to_tensorly()
    assert not any(factor.requires_grad for factor in found.factors)
    back = td.CPConv.from_tensorly(found, like=layer)
    for factor in found.factors:
        factor.zero_()
    assert torch.equal(layer.weight, before)
    assert torch.equal(back.weight, before)


def test_a_layer_that_grows_is_warned_of():
    conv = a_conv(6, 8, 3)
    with pytest.warns(UserWarning, match="cp rank 40 makes the layer larger"):
        td.CPConv.from_tensorly((None, [torch.ones(n, 40) for n in conv.weight.shape]), like=conv)


CONV = nn.Conv2d(6, 8, 3)
GROUPED = nn.Conv2d(6, 8, 3, groups=2)
CP = (None, [torch.ones(n, 4) for n in (8, 6, 3, 3)])
HALF = (None, [torch.ones(n, 2) for n in (4, 3, 3, 3)])


@pytest.mark.parametrize(
    ("method", "decomposition", "like", "axes", "message"),
    [
        (td.CPConv, CP, nn.Linear(6, 8), None, "cp is for convolutions; the weight of a Linear is a matrix"),
        (td.TuckerConv, CP, CONV, None, "tucker is not made of a CPTensor"),
        (td.SVDConv, CP, CONV, None, "svd is not made of a CPTensor"),
        (td.CPConv, (torch.ones(4, 4), CP[1][:2]), CONV, None, "cp is not made of a TuckerTensor"),
        (
            td.CPConv,
            CP,
            nn.Conv2d(8, 6, 3),
            None,
            r"shape \(6, 8, 3, 3\), \(out, in, \*spatial\), .* got \(8, 6, 3, 3\)",
        ),
        (td.CPConv, CP, CONV, ((0,),), r"each of the spatial axes \(0, 1\) once"),
        (td.TTConv, [torch.ones(1, 6, 1), torch.ones(1, 9, 1), torch.ones(1, 8, 1)], CONV, ((0, 1),), "one by one"),
        (td.CPConv, HALF, GROUPED, None, "2 groups; give a list of one decomposition for each"),
        (td.CPConv, [HALF], GROUPED, None, "2 groups; give a list of one decomposition for each"),
        (td.CPConv, [HALF, (None, [f[:, :1] for f in HALF[1]])], GROUPED, None, r"one rank, got \(2,\), \(1,\)"),
        (td.CPConv, "tensor", CONV, None, "TTMatrix is needed, or what they are made of; got str"),
        (td.CPConv, (None, [["a"]]), CONV, None, "arrays of floating-point numbers are needed"),
        (td.CPConv, (None, [torch.ones(8, 2, dtype=torch.complex64)] * 2), CONV, None, "real floating-point numbers"),
        (td.CPConv, (None, [torch.ones(8, 2), torch.ones(6, 3)]), CONV, None, "one column a term in every factor"),
        (td.CPConv, (None, [torch.ones(8, 2, 2), torch.ones(6, 2)]), CONV, None, "arrays with 2 modes"),
        (td.CPConv, (None, []), CONV, None, "2 modes for each of its modes, got none"),
        (
            td.TuckerConv,
            (torch.ones(4, 3), [torch.ones(8, 4), torch.ones(6, 4)]),
            CONV,
            None,
            "every entry of its core",
        ),
        (td.TTConv, [torch.ones(1, 6, 2), torch.ones(3, 8, 1)], CONV, None, "fit each other and end in ranks of 1"),
        (td.TRConv, [torch.ones(2, 6, 2), torch.ones(3, 8, 2)], CONV, None, "TRTensor fit each other in a ring"),
        (td.TRConv, CP, CONV, None, "tr is not made of a CPTensor"),
        (td.CPConv, (None, [torch.ones(n, 200) for n in (8, 6, 3, 3)]), CONV, None, "the largest feasible is 54"),
    ],
)
def test_what_is_not_of_the_kernel_is_refused_with_what_was_found(method, decomposition, like, axes, message):
    with pytest.raises(td.CompressionError, match=message):
        method.from_tensorly(decomposition, like=like, axes=axes)


def test_kinds_of_every_number_of_axes_are_exchanged():
    assert {axes_of(kind) for name in METHOD_NAMES if exchangeable(name) for kind in kinds(name)} == {0, 1, 2, 3}
