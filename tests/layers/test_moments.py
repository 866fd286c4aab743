"""Moments of a layer's inputs, and whitening by them."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tdcompress as td
from tdcompress.layers.patches import patches
from tdcompress.layers.whitening import moment_root
from tdcompress.methods import METHODS
from tests.drawing import cases, each_once
from tests.layers.strategies import an_input, axes_of, error_of, fresh, full_rank, kinds, side, specs

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings("ignore:.* makes the layer larger"),
]


def seen(layer, x, joint=False):
    moments = td.InputMoments(td.ConvSpec.of(layer), joint=joint)
    moments.update(x)
    return moments


def correlated(channels, size, count=32, seed=0):
    """Inputs whose channels are mixed, and whose neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator) * torch.logspace(0, -1.5, channels)[:, None]
    x = torch.einsum("cd,ndhw->nchw", mix.T, torch.randn(count, channels, size, size, generator=generator))
    return F.avg_pool2d(x, 3, stride=1) + 0.5


@cases(150)
@given(data=st.data())
def test_patches_are_what_the_kernel_is_laid_over(data):
    kind = data.draw(st.sampled_from(["Linear", "TransposedLinear", "Conv1d", "Conv2d", "Conv3d"]))
    layer, ndim = fresh(data.draw(specs(kind))), axes_of(kind)
    x = an_input(layer)
    spec = td.ConvSpec.of(layer)
    kernels = spec.to_kernels(layer.weight)
    kernels = kernels.reshape(*kernels.shape[:3], -1)
    out = torch.cat([torch.einsum("goik,ngilk->ngol", kernels, patch) for patch in patches(x, spec)])
    bias = 0 if layer.bias is None else layer.bias.reshape(1, spec.groups, -1, 1)
    expected = layer(x)
    expected = expected.reshape(-1, spec.out_channels) if ndim == 0 else expected
    torch.testing.assert_close((out + bias).reshape(expected.shape), expected)
    if ndim:
        count = expected.reshape(-1, *expected.shape[-ndim:])[0].numel()
        some = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4)))
        for few, every in zip(patches(x, spec, some), patches(x, spec), strict=True):
            assert torch.equal(few, every[:, :, :, some])


def test_moments_stream_and_are_those_of_all_patches_at_once():
    conv, x = nn.Conv2d(6, 8, 3, groups=2), correlated(6, 9).double()
    parts = td.InputMoments(td.ConvSpec.of(conv), joint=True)
    for part in x.split(5):
        parts.update(part)
    columns = F.unfold(x, 3).reshape(len(x), 2, 3, 9, -1)
    whitening = parts.whitening(centred=False)
    torch.testing.assert_close(parts.mean, columns.mean((0, 4)))
    expected = torch.einsum("ngckl,ngdkl->gcd", columns, columns) / (parts.count * 9)
    torch.testing.assert_close(whitening.channels, expected)
    expected = torch.einsum("ngckl,ngcjl->kj", columns, columns) / (parts.count * 3)
    torch.testing.assert_close(whitening.kernel.reshape(9, 9), expected)
    expected = torch.einsum("ngckl,ngdjl->gckdj", columns, columns).reshape(2, 27, 27) / parts.count
    torch.testing.assert_close(whitening.joint, expected)
    mean = parts.mean.flatten(1)
    centred = expected - mean[:, :, None] * mean[:, None]
    torch.testing.assert_close(parts.whitening(centred=True).joint, centred)


@pytest.mark.parametrize("method", sorted(METHODS))
@cases(60)
@given(data=st.data())
def test_at_full_rank_whitening_changes_nothing(method, data):
    kind = data.draw(st.sampled_from([k for k in kinds(method) if k != "Embedding"]))
    layer = fresh(data.draw(specs(kind, most=4 if side(method) > 1 else 1)))
    moments = seen(layer, an_input(layer), joint=data.draw(st.booleans()))
    found = METHODS[method].from_conv(layer, rank=full_rank(layer, method), whiten=moments)
    torch.testing.assert_close(found.weight, layer.weight, rtol=1e-7, atol=1e-7)
    assert error_of(found) < 1e-7


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("bias", [True, False])
def test_the_features_are_nearer_and_the_weights_are_not(method, bias):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 16, side(method), bias=bias), correlated(8, 12, count=64)
    plain = METHODS[method].from_conv(conv, ratio=0.7)
    white = METHODS[method].from_conv(conv, ratio=0.7, whiten=seen(conv, x))
    with torch.no_grad():
        before, after = ((layer(x) - conv(x)).norm() for layer in (plain, white))
    assert after < before
    assert error_of(white) >= error_of(plain) - 1e-3
    true = (conv.weight - white.weight).norm() / conv.weight.norm()
    assert error_of(white) == pytest.approx(float(true.detach()), rel=1e-4)


def test_svd_is_the_best_there_is_for_independent_positions():
    """For a pointwise layer the Kronecker form is exact, so nothing of the rank loses less of the features."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 12, 1).double(), correlated(8, 9).double()
    found = td.SVDConv.from_conv(conv, rank=3, whiten=seen(conv, x))
    rows = x.movedim(1, -1).flatten(0, 2)
    rows = rows - rows.mean(0)
    features = rows @ conv.weight.flatten(1).T
    least = torch.linalg.svdvals(features)[3:].square().sum()
    lost = (rows @ (conv.weight - found.weight).flatten(1).T).square().sum()
    assert lost <= least * 1.02


@pytest.mark.parametrize("groups", [1, 2])
def test_svd_by_the_joint_moment_is_the_best_there_is(groups):
    """The features are what they are: no assumption is left, and nothing of the rank loses less of them."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4 * groups, 10 * groups, 3, groups=groups).double()
    x = torch.randn(64, 4 * groups, 14, 14).double()
    # Smooth in some channels only, so that the moment is no Kronecker product.
    x[:, ::2] = 3 * F.avg_pool2d(x[:, ::2], 3, stride=1, padding=1)
    joint, kronecker = (td.SVDConv.from_conv(conv, rank=3, whiten=seen(conv, x, joint)) for joint in (True, False))
    assert conv.bias is not None
    with torch.no_grad():
        lost, more = ((layer(x) - conv(x)).square().sum() for layer in (joint, kronecker))
        by_group = (conv(x) - conv.bias[:, None, None]).movedim(1, -1).reshape(-1, groups, 10).movedim(1, 0)
        rows = by_group - by_group.mean(1, keepdim=True)
    least = torch.linalg.svdvals(rows)[:, 3:].square().sum()
    assert least <= lost <= 1.01 * least
    assert more > 1.03 * least


def test_other_methods_have_no_use_for_the_joint_moment():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(6, 12, 3), correlated(6, 12)
    for method, options in (("tucker", None), ("svd", td.SVDOptions(split="spatial"))):
        first, second = (
            METHODS[method].from_conv(conv, ratio=0.6, solver=options, whiten=seen(conv, x, joint)).weight
            for joint in (True, False)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("method", "layout"), each_once(product(sorted(METHODS), [torch.contiguous_format, torch.channels_last]))
)
def test_the_memory_format_is_kept(method, layout):
    conv, x = nn.Conv2d(16, 24, side(method)).to(memory_format=layout), correlated(16, 12)  # type: ignore[call-overload]
    layer = METHODS[method].from_conv(conv, ratio=0.7, whiten=seen(conv, x))
    out = layer(x.contiguous(memory_format=layout))
    assert out.stride() == conv(x.contiguous(memory_format=layout)).stride()


def test_the_bias_takes_over_the_mean_that_is_lost():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 16, 3), correlated(8, 12)
    found = td.TuckerConv.from_conv(conv, ratio=0.8, whiten=seen(conv, x))
    with torch.no_grad():
        assert (found(x) - conv(x)).mean((0, 2, 3)).abs().max() < 1e-4


def test_dead_channels_and_constant_inputs_are_ordinary():
    conv, x = nn.Conv2d(4, 8, 3), torch.randn(4, 4, 6, 6)
    x[:, 1] = 0
    for inputs in (x, torch.ones_like(x), torch.zeros_like(x)):
        found = td.TuckerConv.from_conv(conv, ratio=0.5, whiten=seen(conv, inputs))
        assert found.weight.isfinite().all()


def test_decompose_takes_moments_by_name_and_refuses_others():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False))
    data = [torch.randn(4, 3, 8, 8)]
    moments = td.input_moments(model, data, "2")
    assert list(moments) == ["2"]
    td.decompose(model, "2", "cp", 0.5, whiten=moments)
    with pytest.raises(td.CompressionError, match="layer '0': whiten= has no moments"):
        td.decompose(model, ["0", "2"], "cp", 0.5, whiten=moments)
    with pytest.raises(td.CompressionError, match="of another layer's inputs"):
        td.decompose(model, "0", "cp", 0.5, whiten={"0": moments["2"]})
    with pytest.raises(td.CompressionError, match="takes InputMoments"):
        td.decompose(model, "0", "cp", 0.5, whiten={"0": torch.eye(3)})  # type: ignore[dict-item]
    with pytest.raises(td.CompressionError, match="the data is empty"):
        td.input_moments(model, [])
    with pytest.raises(td.CompressionError, match="layer '0': the features are NaN"):
        td.input_moments(model, [torch.full((1, 3, 8, 8), float("inf"))])
    with pytest.raises(td.CompressionError, match="no input was seen"):
        td.decompose(model, "2", "cp", 0.5, whiten={"2": td.InputMoments(td.ConvSpec.of(model[2]))})


def test_an_arrangement_can_be_given_with_a_rank():
    conv = nn.Conv2d(8, 8, 3)
    layer = td.SVDConv.from_conv(conv, rank=4, axes=((1,), (0,)))
    assert [tuple(stage.weight.shape) for stage in layer] == [(4, 8, 1, 3), (8, 4, 3, 1)]
    with pytest.raises(td.CompressionError, match="no arrangement"):
        td.TuckerConv.from_conv(conv, rank=4, axes=((1,), (0,)))


def test_inputs_far_from_zero_lose_no_digits():
    """Mean 1000, deviation 1, in float32: the variance is that of the same inputs in float64."""
    x = torch.randn(16, 4, 12, 12, generator=torch.Generator().manual_seed(0)) + 1000
    conv = nn.Conv2d(4, 8, 3)
    single, double = seen(conv, x), seen(conv, x.double())
    for part in ("channels", "kernel"):
        first, second = (getattr(moments.whitening(centred=True), part) for moments in (single, double))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    assert single.whitening(centred=True).channels.diagonal(dim1=-2, dim2=-1).sub(1).abs().max() < 0.2


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, (3, 5), stride=(2, 1), dilation=(1, 2), padding=(1, 2)),
        nn.Conv1d(4, 6, 4, stride=3, padding_mode="reflect", padding=2),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2),
    ],
)
def test_moments_of_pixels_are_those_of_patches(conv):
    x = torch.randn(5, 4, *[11] * (conv.weight.ndim - 2), generator=torch.Generator().manual_seed(0)).double() + 0.3
    moments = seen(conv, x)
    rows = torch.cat([patch.permute(1, 0, 3, 2, 4).flatten(1, 2) for patch in patches(x, moments.spec)], 1)
    count = rows.shape[1]  # (groups, patches, in, positions)
    assert count == moments.count
    whitening = moments.whitening(centred=False)
    torch.testing.assert_close(moments.mean, rows.mean(1))
    expected = torch.einsum("gncp,gndp->gcd", rows, rows) / (count * rows.shape[3])
    torch.testing.assert_close(whitening.channels, expected)
    size = rows.shape[3]
    expected = torch.einsum("gncp,gncq->pq", rows, rows) / (count * rows.shape[2])
    if size > 1:
        torch.testing.assert_close(whitening.kernel.reshape(size, size), expected)


def test_of_long_kernels_some_patches_are_drawn(monkeypatch):
    conv, x = nn.Conv1d(6, 4, 9), torch.randn(64, 6, 50, generator=torch.Generator().manual_seed(0)).cumsum(-1) / 5
    every = seen(conv, x).whitening(centred=True)
    monkeypatch.setattr("tdcompress.layers.moments._PRODUCTS", 9**2 * 42 * 6 * 16)
    some = seen(conv, x)
    assert some._rows < 64 * 42 * 6 / 3
    apart = (some.whitening(centred=True).kernel - every.kernel).norm() / every.kernel.norm()
    assert 0 < apart < 0.3
    torch.testing.assert_close(some.whitening(centred=True).channels, every.channels)
    assert torch.equal(seen(conv, x)._kernel, some._kernel)


def test_a_joint_moment_that_is_too_large_says_how_large():
    model = nn.Sequential(nn.Conv1d(1024, 8, 64))
    with pytest.raises(td.CompressionError, match=r"layer '0'.* 1 × 65536² numbers, 17.2 GB; leave joint=False"):
        td.input_moments(model, [torch.zeros(1, 1024, 64)], joint=True)


def test_a_moment_that_rounding_has_left_indefinite_is_whitened_all_the_same():
    root = moment_root(torch.tensor([[1.0, 2.0], [2.0, 1.0]]).double())  # eigenvalues 3 and -1
    assert root.isfinite().all()
