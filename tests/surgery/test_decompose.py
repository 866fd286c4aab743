"""decompose(): what is picked, what is changed, what is refused."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.bn(self.conv1(x)).relu())


def a_model():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Block(16), Block(16), nn.Flatten(), nn.Linear(16 * 36, 4))


def factorized(model):
    return [name for name, module in model.named_modules() if isinstance(module, td.FactorizedConv)]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("1.conv1", ["1.conv1"]),
        ("1.*", ["1.conv1", "1.conv2"]),
        ("*.conv2", ["1.conv2", "2.conv2"]),
        (["0", "2.*", "2.conv1"], ["0", "2.conv1", "2.conv2"]),
        (lambda name, module: name.startswith("2"), ["2.conv1", "2.conv2"]),
    ],
)
def test_layers_are_picked_by_name_glob_list_and_predicate(layer, expected):
    model = a_model()
    before = state(model)
    small = td.decompose(model, layer, "tucker", 0.4)
    assert factorized(small) == expected
    assert small(torch.randn(2, 3, 6, 6)).shape == (2, 4)
    assert same(state(model), before)
    assert factorized(model) == []
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_inplace_changes_the_model_it_is_given():
    model = a_model()
    assert td.decompose(model, "1.conv1", "cp", 0.5, inplace=True) is model
    assert factorized(model) == ["1.conv1"]


@pytest.mark.parametrize("inplace", [False, True])
def test_the_empty_name_is_the_model_itself(inplace):
    conv = nn.Conv1d(8, 8, 3)
    small = td.decompose(conv, "", "tt", 0.3, inplace=inplace)
    assert isinstance(small, td.TTConv)
    assert small(torch.randn(1, 8, 9)).shape == (1, 8, 7)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_used_twice_is_swapped_everywhere_and_once(inplace):
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    small: Any = td.decompose(model, "0", "tucker", 0.5, inplace=inplace)
    assert small[0] is small[2]
    assert isinstance(small[0], td.TuckerConv)


def test_a_second_call_leaves_factorized_layers_alone():
    once = td.decompose(a_model(), "1.conv1", "tucker", 0.5)
    twice: Any = td.decompose(once, "*", "cp", 0.5)
    assert isinstance(twice[1].conv1, td.TuckerConv)
    assert factorized(twice) == ["0", "1.conv1", "1.conv2", "2.conv1", "2.conv2"]
    with pytest.raises(td.CompressionError, match=r"layer '1\.conv1': is factorized already \(TuckerConv\)"):
        td.decompose(once, "1.conv1", "cp", 0.5)
    with pytest.raises(td.CompressionError, match=r"layer '1\.conv1\.core': is a stage of '1\.conv1'"):
        td.decompose(once, "1.conv1.core", "cp", 0.5)


def test_what_was_reached_is_on_the_layer():
    small: Any = td.decompose(a_model(), "1.conv1", "cp", 0.9)
    layer = small[1].conv1
    kept = sum(stage.weight.numel() for stage in layer) / (16 * 16 * 9)
    assert layer.ratio == pytest.approx(1 - kept)
    assert layer.ratio >= 0.9


def test_a_layers_result_does_not_depend_on_its_company():
    model = a_model()
    alone: Any = td.decompose(model, "2.conv2", "cp", 0.5, seed=5).get_submodule("2.conv2")
    together: Any = td.decompose(model, ["1.conv1", "2.conv2"], "cp", 0.5, seed=5).get_submodule("2.conv2")
    assert torch.equal(alone.weight, together.weight)


def test_an_explicit_rank_is_obeyed_and_growth_is_warned_of():
    model = a_model()
    assert td.decompose(model, "1.conv1", "tucker", rank=(5, 7)).get_submodule("1.conv1").rank == (5, 7)
    with pytest.warns(UserWarning, match=r"layer '1\.conv1': .* larger: 2816 parameters instead of 2304") as caught:
        small: Any = td.decompose(model, "1.conv1", "tucker", rank=(16, 16))
    assert small[1].conv1.ratio < 0
    assert caught[0].filename == __file__


@pytest.mark.parametrize("rank", [np.array([3, 2]), (np.int64(3), np.int32(2)), torch.tensor([3, 2])], ids=repr)
def test_numbers_and_ranks_of_numpy_are_numbers_and_ranks(rank):
    model = a_model()
    small: Any = td.decompose(model, "0", "tucker", rank=rank, seed=np.int64(3))
    assert small[0].rank == (3, 2)
    assert all(type(entry) is int for entry in small[0].rank)
    assert td.decompose(model, "0", "cp", rank=torch.tensor(3)).get_submodule("0").rank == 3
    small = td.decompose(model, "1.conv1", "cp", np.float32(0.5))
    assert small[1].conv1.ratio >= 0.5


def test_the_papers_rule_is_obeyed():
    conv = nn.Conv2d(64, 64, 3)
    assert td.decompose(conv, "", "tt", 0.5, rank="tensorly-torch").rank == (64, 9, 27)
    assert td.decompose(conv, "", "cp", 0.9, rank="tensorly-torch").rank == 28
    assert td.decompose(conv, "", "tucker", 0.9, rank="tensorly-torch").rank == (14, 14)


def spoiled(value):
    model = a_model()
    with torch.no_grad():
        model[1].conv1.weight[0, 0, 0, 0] = value
    return model


def enormous():
    model = a_model()
    with torch.no_grad():
        model[1].conv1.weight.normal_().mul_(1e37)
    return model


def with_hook():
    model = a_model()
    model[1].conv1.register_forward_hook(lambda *args: None)
    return model


def parametrized():
    model = a_model()
    nn.utils.parametrizations.weight_norm(model[1].conv1)
    return model


class MyConv(nn.Conv2d):
    pass


def subclassed():
    model = a_model()
    model[1].conv1 = MyConv(16, 16, 3, padding=1)
    return model


GOOD = {"layer": "1.conv1", "method": "tucker", "ratio": 0.5}


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        (a_model, {"layer": "1.conv3"}, r"no layer '1.conv3'; did you mean '1.conv[12]'"),
        (a_model, {"layer": "nothing.like.it"}, "no layer 'nothing.like.it'; there are '0', '1.conv1'"),
        (a_model, {"layer": "9.*"}, "the glob '9.\\*' matches no convolution; there are"),
        (a_model, {"layer": []}, "no layer was named"),
        (a_model, {"layer": lambda name, module: False}, "the predicate picks no convolution"),
        (a_model, {"layer": "1.bn"}, "layer '1.bn': BatchNorm2d cannot be factorized; Linear, Conv1d, Conv2d, Conv3d"),
        (
            a_model,
            {"method": "tuker"},
            f"unknown method 'tuker'; known are {', '.join(sorted(METHODS))}. Did you mean 'tucker'?",
        ),
        (a_model, {"ratio": 1.0}, "layer '1.conv1': ratio must be between 0 and 1"),
        (a_model, {"ratio": 0}, "ratio must be between 0 and 1"),
        (a_model, {"rank": (3, 3)}, "either a ratio or a rank, got both"),
        (a_model, {"rank": 3, "ratio": 0.999}, "either a ratio or a rank, got both"),  # and not what 0.999 lacks
        (a_model, {"ratio": None}, "either a ratio or a rank, got neither"),
        (a_model, {"ratio": None, "rank": (3,)}, r"has 1 entries, 2 are needed; the largest feasible is \(16, 16\)"),
        (a_model, {"ratio": None, "rank": (3, 17)}, r"the largest feasible is \(16, 16\)"),
        (a_model, {"ratio": None, "rank": 0}, r"the largest feasible is \(16, 16\)"),
        (a_model, {"ratio": None, "rank": "tensorly-torch"}, "needs a ratio"),
        (a_model, {"rank": "vbmf"}, "unknown rank rule 'vbmf'"),
        (a_model, {"ratio": 0.999}, r"cannot reach ratio=0.999.*largest ratio that can be reached is 0.9822"),
        (a_model, {"solver": "magic"}, "unknown solver 'magic'"),
        (a_model, {"seed": "a"}, "seed must be a whole number or a torch.Generator, got 'a'"),
        (a_model, {"layer": None}, "layer must be a name, .* got a NoneType; there are '0'"),
        (a_model, {"layer": nn.Conv2d(1, 1, 1)}, "layer must be a name, .* got a Conv2d"),
        (lambda: spoiled(float("nan")), {}, "layer '1.conv1': 1 of 2304 weights are NaN or infinite"),
        (lambda: spoiled(float("inf")), {}, "NaN or infinite"),
        (enormous, {"method": "cp"}, "layer '1.conv1': its weights are so large that"),
        (lambda: a_model().to("meta"), {}, "meta device"),
        (with_hook, {}, "hooks"),
        (parametrized, {}, "weight is parametrized or pruned; pass parametrized='bake'"),
        (subclassed, {}, "MyConv is a subclass of Conv2d"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_bad_input_is_refused_and_nothing_is_changed(build, change, message, inplace):
    model = build()
    before, modules = copy.deepcopy(dict(model.state_dict())), list(model.modules())
    with pytest.raises(td.CompressionError, match=message):
        td.decompose(model, **(GOOD | change), inplace=inplace)
    assert list(model.modules()) == modules
    assert all(
        a is b or a.is_meta or torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_pytorch_cannot_compute_with_as_floating_point_are_refused(dtype):
    conv = nn.Conv2d(4, 4, 3)
    conv.weight = nn.Parameter(torch.zeros(4, 4, 3, 3, dtype=dtype), requires_grad=False)
    for refused in (lambda: td.decompose(conv, "", "tucker", 0.5), lambda: td.compress(conv, 0.5)):
        with pytest.raises(td.CompressionError, match=f"layer '': the weight is {dtype}; only floating-point"):
            refused()


def test_one_impossible_layer_among_many_changes_nothing():
    model = a_model()
    with pytest.raises(td.CompressionError, match="layer '0': cp cannot reach"):
        td.decompose(model, ["1.conv1", "0"], "cp", 0.97, inplace=True)
    assert factorized(model) == []


def test_a_layer_that_no_rank_makes_smaller_is_refused():
    with pytest.raises(td.CompressionError, match="cannot make this layer smaller: rank 1 has 88 parameters"):
        td.decompose(nn.Conv2d(8, 8, 3, groups=8), "", "tucker", 0.01)
