"""CP's two forms: a depthwise stage for every axis or one for all, and the way between them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tdcompress as td
from tests.drawing import cases
from tests.layers.strategies import an_input, error_of, factorize, layers, parameters_of, ranks

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
JOINT = td.CPOptions(spatial="joint")
BEST = td.CPOptions(spatial="best")
EXACT = 1e-10


def same(one, other):
    return torch.allclose(one, other, rtol=0, atol=EXACT)


@cases(60)
@given(conv=layers("cp"), data=st.data())
def test_one_joint_spatial_stage_keeps_the_contract(conv, data):
    spec = td.ConvSpec.of(conv)
    (axes,) = td.CPConv.arrangements(spec.kernel_axes, JOINT)
    (full,) = td.CPConv.full_rank(spec.modes(axes))
    x = an_input(conv)
    assert same(factorize(conv, "cp", rank=full, solver=JOINT)(x), conv(x))
    layer = factorize(conv, "cp", rank=data.draw(st.integers(1, full)), solver=JOINT)
    assert len(layer) == (3 if spec.kernel_axes else 2)
    assert same(layer(x), layer.to_conv()(x))


@cases(120)
@given(conv=layers("cp"), data=st.data())
def test_merging_and_splitting_change_nothing_but_the_arrangement(conv, data):
    layer = factorize(conv, "cp", rank=data.draw(ranks(conv, "cp")))
    joint = layer.spec.modes((layer.spec.kernel_axes,))
    if len(layer.axes) > 1 and layer.rank > td.CPConv.full_rank(joint)[0]:
        with pytest.raises(td.CompressionError, match="merged stack would be larger than the dense convolution"):
            layer.merge_spatial()
        return
    x, merged = an_input(conv), layer.merge_spatial()
    split = merged.split_spatial()
    assert merged.axes == ((layer.spec.kernel_axes,) if layer.spec.kernel_axes else ())
    assert split.axes == layer.axes
    for one in (merged, split):
        assert same(one(x), layer(x))
        assert same(one.weight, layer.weight)
        assert same(one.to_conv()(x), layer(x))
        assert (one.spec, one.ranks, one.solution) == (layer.spec, layer.ranks, layer.solution)
        assert one.ratio == pytest.approx(1 - parameters_of(one) / conv.weight.numel())
        assert parameters_of(one) == one.groups * td.CPConv.parameters_at(one.spec.modes(one.axes), one.ranks)
        assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in layer.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [nn.Conv2d, nn.ConvTranspose3d])
def test_what_was_merged_can_be_split_in_every_dtype(build, dtype):
    layer = td.CPConv.from_conv(build(8, 8, 3, dtype=dtype), rank=6).eval()
    layer[1].weight.requires_grad_(False)
    merged = layer.merge_spatial()
    assert not merged.training
    assert [stage.weight.requires_grad for stage in merged] == [True, False, True]
    assert {p.dtype for p in merged.split_spatial().parameters()} == {dtype}
    assert [name for name, _ in merged.split_spatial().named_children()] == [name for name, _ in layer.named_children()]


def test_what_was_merged_in_double_precision_can_be_split_for_all_the_rounding_of_its_singular_vectors():
    for seed in (183, 214, 220):
        torch.manual_seed(seed)
        layer = td.CPConv.from_conv(nn.Conv3d(2, 2, 3, dtype=torch.float64), rank=3)
        assert same(layer.merge_spatial().split_spatial().weight, layer.weight)


@pytest.mark.parametrize("build", [nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_a_stage_that_is_no_product_any_more_is_split_only_when_the_nearest_is_asked_for(build):
    layer = td.CPConv.from_conv(build(8, 8, 3, dtype=torch.float64), rank=6)
    merged, x = layer.merge_spatial(), torch.randn(1, 8, *[6] * len(layer.kernel_size), dtype=torch.float64)
    with torch.no_grad():
        merged[1].weight += 0.1 * torch.randn_like(merged[1].weight)
    before = copy.deepcopy(merged)
    with pytest.raises(td.CompressionError, match=r"no product of one kernel an axis; the nearest is 0\.\d+ away"):
        merged.split_spatial()
    split = merged.split_spatial(nearest=True)
    assert split.solution is None
    again = split.merge_spatial()
    lost = (again[1].weight - merged[1].weight).norm()
    assert 0 < lost < merged[1].weight.norm()
    assert same(again(x), split(x))
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), merged.parameters(), strict=True))


def test_any_arrangement_of_three_axes_can_be_merged_and_split():
    spec = td.ConvSpec.of(nn.Conv3d(6, 8, (2, 3, 2), padding=1, stride=(1, 2, 1)))
    layer, x = td.CPConv(spec, 5, ((1,), (0,), (2,)), dtype=torch.float64), torch.randn(1, 6, 4, 5, 6).double()
    merged = layer.merge_spatial()
    assert merged.axes == ((0, 1, 2),)
    assert same(merged(x), layer(x))
    half = td.CPConv(spec, 5, ((0, 2), (1,)), dtype=torch.float64)
    split = half.split_spatial(nearest=True)
    assert split.axes == ((0,), (2,), (1,))
    assert same(split(x), split.to_conv()(x))
    assert same(split.merge_spatial().weight, split.weight)


def test_the_nearest_product_of_two_axes_is_the_leading_singular_pair_of_every_channel():
    layer = td.CPConv.from_conv(nn.Conv2d(8, 8, (3, 5), dtype=torch.float64), rank=6, solver=JOINT)
    split = layer.split_spatial(nearest=True)
    lost = (split.merge_spatial()[1].weight - layer[1].weight).detach().square().sum((1, 2, 3))
    tails = torch.linalg.svdvals(layer[1].weight.detach().squeeze(1))[:, 1:].square().sum(1)
    assert same(lost, tails)


def test_the_rule_counts_the_joint_mode_as_one():
    conv = nn.Conv2d(64, 64, 7)
    joint = td.CPConv.from_conv(
        conv, ratio=0.9, rank="tensorly-torch", solver=td.CPOptions(spatial="joint", max_iter=1)
    )
    assert joint.rank == round(0.1 * conv.weight.numel() / (64 + 64 + 49))


def either(conv, **how):
    """The layer with a stage for every axis, and that with one for all."""
    return [td.CPConv.from_conv(conv, solver=td.CPOptions(spatial=form), **how) for form in ("separable", "joint")]


@pytest.mark.parametrize(
    ("conv", "ratio", "stages"), [(nn.Conv2d(32, 24, 3), 0.1, 3), (nn.ConvTranspose2d(6, 8, 7, groups=2), 0.8, 4)]
)
def test_under_a_ratio_the_form_that_loses_less_is_taken_whichever_it_is(conv, ratio, stages):
    best, forms = td.CPConv.from_conv(conv, ratio=ratio, solver=BEST), either(conv, ratio=ratio)
    nearer = min(forms, key=lambda layer: layer.solution.relative_error)
    assert len(best) == len(nearer) == stages
    assert (best.axes, best.ranks) == (nearer.axes, nearer.ranks)
    assert torch.equal(best.weight, nearer.weight)


def test_where_a_trial_would_be_as_long_as_the_rest_both_forms_are_solved_for():
    conv, options = nn.Conv2d(16, 16, 3), td.CPOptions(spatial="best", max_iter=4)
    best = td.CPConv.from_conv(conv, ratio=0.3, solver=options)
    errors = [
        error_of(td.CPConv.from_conv(conv, ratio=0.3, solver=td.CPOptions(spatial=form, max_iter=4)))
        for form in ("separable", "joint")
    ]
    assert error_of(best) == min(errors)


def test_a_rank_and_a_rule_are_meant_for_a_factor_along_every_axis():
    conv = nn.Conv2d(32, 24, 3)
    ruled = td.CPConv.from_conv(conv, ratio=0.5, rank="tensorly-torch", solver=BEST)
    assert ruled.axes == td.CPConv.from_conv(conv, rank=9, solver=BEST).axes == ((0,), (1,))
    assert td.CPConv.from_conv(conv, rank=9, axes=((0, 1),), solver=BEST).axes == ((0, 1),)
    assert td.CPConv.arrangements((), BEST) == [()]
    assert td.CPConv.arrangements((1,), BEST) == [((1,),)]


def test_whitening_decides_by_the_features_and_a_plan_knows_both_forms():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(16, 24, 3), torch.randn(32, 16, 8, 8).cumsum(2)
    moments = td.InputMoments(td.ConvSpec.of(conv))
    moments.update(x)
    best, forms = (
        td.CPConv.from_conv(conv, ratio=0.5, solver=BEST, whiten=moments),
        either(conv, ratio=0.5, whiten=moments),
    )
    with torch.no_grad():
        lost = [(layer(x) - conv(x)).norm() for layer in (best, *forms)]
    assert lost[0] <= min(lost[1:]) * 1.001
    plan = td.plan(nn.Sequential(conv), 0.5, methods={"cp": BEST})
    assert {option.axes for option in plan.layers[0].options if option.method == "cp"} == {((0,), (1,)), ((0, 1),)}
