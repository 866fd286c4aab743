"""Layers that are more than a plain convolution: hooks, parametrizations, subclasses, wrappers."""

import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import tdcompress as td

pytestmark = pytest.mark.filterwarnings("ignore:.*svd rank 12 makes the layer larger")  # full rank, to compare exactly


def a_conv(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(8, 12, 3, padding=1)


def a_model(conv=None):
    return nn.Sequential(a_conv() if conv is None else conv, nn.ReLU(), nn.Conv2d(12, 4, 1))


X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def old_weight_norm(conv):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(conv)


def old_spectral_norm(conv):
    return nn.utils.spectral_norm(conv)


def pruned(conv):
    return prune.l1_unstructured(prune.random_unstructured(conv, "weight", 0.3), "weight", 0.2)


def doubled(conv):
    class Double(nn.Module):
        def forward(self, bias):
            return 2 * bias

    nn.utils.parametrize.register_parametrization(conv, "bias", Double())
    return conv


COMPUTED = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    doubled,
    old_weight_norm,
    old_spectral_norm,
    pruned,
]


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_computed_weight_is_baked_or_refused(computed, inplace):
    model = a_model(computed(a_conv())).train()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(1.5)  # as an optimizer would, behind the back of what was computed before
        expected = model[0].eval()(X)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with pytest.raises(td.CompressionError, match=r"layer '0': its (weight|bias) is parametrized or pruned; pass"):
        td.decompose(model, "0", "svd", rank=12, inplace=inplace)
    small: Any = td.decompose(model, "0", "svd", rank=12, parametrized="bake", inplace=inplace)
    if not inplace:
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert type(small[0]) is td.SVDConv
    assert not any(small[0]._forward_pre_hooks)
    assert small[0].weight.requires_grad
    assert (small[0](X) - expected).norm() < 1e-5 * expected.norm()  # the norms' scales differ widely


def test_a_baked_weight_is_trained_even_if_it_is_baked_without_gradients():
    with torch.no_grad():
        layer = td.decompose(parametrizations.weight_norm(a_conv()), "", "cp", 0.5, parametrized="bake")
    assert all(parameter.requires_grad for parameter in layer.parameters())


def test_a_frozen_parametrized_weight_stays_frozen():
    conv = parametrizations.weight_norm(a_conv())
    conv.requires_grad_(False)
    layer = td.decompose(conv, "", "cp", 0.5, parametrized="bake")
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_a_model_that_torch_cannot_copy_is_still_changed_in_place():
    model = nn.Sequential(a_conv(), old_weight_norm(nn.Conv2d(12, 4, 3)))
    model(X)  # the older weight norm leaves a computed tensor on its layer, which torch refuses to copy
    with pytest.raises(td.CompressionError, match=r"the model cannot be copied .*; pass inplace=True"):
        td.decompose(model, "0", "tucker", 0.5)
    assert isinstance(td.decompose(model, "0", "tucker", 0.5, inplace=True).get_submodule("0"), td.TuckerConv)


# --- hooks ----------------------------------------------------------------------------------------------


class Recorder:
    """Hooks of every kind, which note that they were called and by which module."""

    def __init__(self):
        self.seen = []

    def note(self, kind):
        def hook(module, *args, **kwargs):
            self.seen.append((kind, type(module).__name__))

        return hook

    def register(self, module):
        return [
            module.register_forward_pre_hook(self.note("pre")),
            module.register_forward_hook(self.note("kwargs"), with_kwargs=True),
            module.register_full_backward_hook(self.note("backward")),
            module.register_state_dict_post_hook(self.note("state")),
            module.register_load_state_dict_pre_hook(self.note("load")),
        ]


def exercise(model):
    model(X.clone().requires_grad_()).sum().backward()
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_of_every_kind_are_refused_or_carried_over(inplace):
    model, recorder = a_model(), Recorder()
    handles = recorder.register(model[0])
    with pytest.raises(td.CompressionError, match=r"layer '0': it carries hooks; pass hooks='keep'"):
        td.decompose(model, "0", "tucker", 0.5, inplace=inplace)
    assert type(model[0]) is nn.Conv2d
    small = td.decompose(model, "0", "tucker", 0.5, inplace=inplace, hooks="keep")
    exercise(small)
    assert recorder.seen == [(kind, "TuckerConv") for kind in ("pre", "kwargs", "backward", "state", "load")]
    if inplace:  # the handles go on working, too
        recorder.seen.clear()
        for handle in handles:
            handle.remove()
        exercise(small)
        assert recorder.seen == []


def test_a_hook_of_a_copy_belongs_to_the_copy_as_it_does_in_torch():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.calls = a_conv(), 0
            self.conv.register_forward_hook(self.count)

        def count(self, *args):
            self.calls += 1

        def forward(self, x):
            return self.conv(x)

    model: Any = Counter()
    small: Any = td.decompose(model, "conv", "cp", 0.5, hooks="keep")
    small(X)
    assert (model.calls, small.calls) == (0, 1)


def test_other_attributes_come_along():
    model = a_model()
    model[0].learning_rate_scale = 0.1
    for inplace in (False, True):
        assert td.decompose(model, "0", "cp", 0.5, inplace=inplace).get_submodule("0").learning_rate_scale == 0.1


def test_hooks_of_layers_that_stay_are_none_of_our_business():
    model, recorder = a_model(), Recorder()
    recorder.register(model[2])
    td.decompose(model, "0", "tucker", 0.5)(X)
    assert ("pre", "Conv2d") in recorder.seen


# --- classes --------------------------------------------------------------------------------------------


class Scaled(nn.Conv2d):
    """A subclass whose forward does the same."""

    tag = "mine"


@pytest.mark.parametrize("selector", ["0", "*", lambda name, module: name == "0"])
def test_a_subclass_is_refused_unless_it_is_allowed(selector):
    model = nn.Sequential(Scaled(8, 12, 3, padding=1))
    with pytest.raises(
        td.CompressionError, match=r"layer '0': Scaled is a subclass of Conv2d .* allow_subclasses=True"
    ):
        td.decompose(model, selector, "svd", 0.5)
    small = td.decompose(model, selector, "svd", rank=12, allow_subclasses=True)
    assert torch.allclose(small(X), model(X), atol=1e-5)


def test_a_parametrized_subclass_needs_both_options():
    conv = parametrizations.weight_norm(Scaled(8, 12, 3, padding=1))
    with pytest.raises(td.CompressionError, match="Scaled is a subclass"):
        td.decompose(conv, "", "svd", 0.5, parametrized="bake")
    layer = td.decompose(conv, "", "svd", rank=12, parametrized="bake", allow_subclasses=True)
    assert torch.allclose(layer(X), conv(X), atol=1e-5)


def test_a_lazy_layer_is_refused_until_it_has_a_weight():
    model = nn.Sequential(nn.LazyConv2d(12, 3, padding=1))
    with pytest.raises(td.CompressionError, match=r"layer '0': it is lazy .* run one forward first"):
        td.decompose(model, "0", "tucker", 0.5)
    model(X)
    assert isinstance(td.decompose(model, "0", "tucker", 0.5).get_submodule("0"), td.TuckerConv)


def test_a_replaced_forward_and_further_state_are_refused():
    conv = a_conv()
    conv.forward = lambda x: x
    with pytest.raises(td.CompressionError, match="its forward was replaced on the instance"):
        td.decompose(conv, "", "tucker", 0.5)
    conv = a_conv()
    conv.register_buffer("mask", torch.ones(3))
    conv.adapter = nn.Linear(2, 2)
    with pytest.raises(td.CompressionError, match="beside weight and bias it has mask, adapter"):
        td.decompose(conv, "", "tucker", 0.5)


def test_a_weight_that_is_no_plain_tensor_is_refused():
    class Strange(torch.Tensor):
        pass

    conv = a_conv()
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(Strange))
    with pytest.raises(td.CompressionError, match="its weight or bias is a Strange; only plain tensors"):
        td.decompose(conv, "", "tucker", 0.5)


# --- wrappers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_model_says_when_to_call(inplace):
    compiled: Any = torch.compile(a_model(), backend="eager")
    with pytest.raises(
        td.CompressionError, match=r"layer '_orig_mod.0': the model is wrapped by OptimizedModule; .*_orig_mod"
    ):
        td.decompose(compiled, "*", "tucker", 0.5, inplace=inplace)
    part = nn.Sequential(compiled, nn.Conv2d(4, 8, 3))
    with pytest.raises(td.CompressionError, match="'0', around it, is wrapped by OptimizedModule"):
        td.decompose(part, "0._orig_mod.0", "tucker", 0.5, inplace=inplace)
    assert isinstance(td.decompose(part, "1", "tucker", 0.5, inplace=inplace).get_submodule("1"), td.TuckerConv)


def test_a_model_compiled_in_place_goes_on_in_place():
    model = a_model()
    model.compile(backend="eager")
    model(X)
    td.decompose(model, "0", "tucker", rank=(4, 4), inplace=True)
    assert torch.allclose(model(X), nn.Sequential(*model)(X), atol=1e-6)


def test_a_distributed_model_says_when_to_call(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(
            td.CompressionError, match=r"the model is wrapped by DistributedDataParallel; .*, its `module`"
        ):
            td.decompose(nn.parallel.DistributedDataParallel(a_model()), "module.0", "tucker", 0.5)
        with pytest.raises(td.CompressionError, match="the model is wrapped by DistributedDataParallel"):
            td.save(nn.parallel.DistributedDataParallel(a_model()), tmp_path / "x")
    finally:
        torch.distributed.destroy_process_group()


def test_data_parallel_replicates_at_every_forward_so_it_may_be_decomposed():
    small = td.decompose(nn.DataParallel(a_model()), "module.0", "tucker", 0.5)
    assert small(X).shape == (2, 4, 6, 6)


# --- what is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cp", "svd", "tt", "tucker"])
def test_channels_last_weights_stay_channels_last(method):
    model = a_model().to(memory_format=torch.channels_last)
    small: Any = td.decompose(model, "0", method, 0.5)
    restored: Any = td.restore(small)
    for layer in (*small[0], restored[0]):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_names_keep_their_order():
    model = a_model()
    small = td.decompose(model, "0", "tucker", 0.5)
    names = [name.split(".")[0] for name, _ in small.named_parameters()]
    assert names == sorted(names)
    assert [name for name, _ in small.named_children()] == ["0", "1", "2"]


def test_in_place_an_attribute_that_is_no_submodule_is_not_overlooked():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = a_conv()
            self.order = [self.conv]

        def forward(self, x):
            return self.order[0](x)

    model = Model()
    with pytest.raises(td.CompressionError, match="layer 'conv': the model holds it in the attribute 'order' too"):
        td.decompose(model, "conv", "tucker", 0.5, inplace=True)
    assert type(model.conv) is nn.Conv2d
    small: Any = td.decompose(model, "conv", "tucker", 0.5)
    assert small.order[0] is small.conv


def test_the_dense_weights_are_freed():
    model = a_model()
    weight = weakref.ref(model[0].weight)
    model = td.decompose(model, "0", "tucker", 0.5, inplace=True)
    assert weight() is None


@pytest.mark.parametrize("option", [{"hooks": "drop"}, {"parametrized": "yes"}])
def test_an_unknown_option_is_refused(option):
    with pytest.raises(td.CompressionError, match="must be 'refuse' or"):
        td.decompose(a_model(), "0", "tucker", 0.5, **option)


def test_refusals_name_what_decompose_would_refuse_and_change_nothing():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8),
        Scaled(8, 8, 3),
        parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
        nn.Conv2d(8, 8, 3),
    )
    found = td.refusals(model, "tucker", 0.5)
    assert list(found) == ["0", "1", "2"]
    for name, reason in found.items():
        with pytest.raises(td.CompressionError) as caught:
            td.decompose(model, name, "tucker", 0.5)
        assert str(caught.value) == f"layer {name!r}: {reason}"
    assert list(td.refusals(model, "tucker", 0.5, allow_subclasses=True, parametrized="bake")) == ["0"]
    assert td.refusals(nn.Sequential(nn.Linear(2, 2)), "svd", 0.9) == {
        "0": "svd cannot make this layer smaller: rank 1 has 4 parameters, the dense weight 4. Leave it dense or use "
        "another method."
    }
