from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tdcompress as td
from examples.paper.blocks import BasicBlock
from examples.paper.models import ResNet, Shape, seeded
from tdcompress.methods import taking
from tdcompress.metrics import get_metrics
from tdcompress.study import PrefixCache, prefix
from tdcompress.study.chains import folded, links
from tdcompress.study.features import Features
from tests.drawing import cases


def chain():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), body, head)
    for norm in ("1", "3.1"):
        nn.init.uniform_(model.get_buffer(f"{norm}.running_mean"))
        nn.init.uniform_(model.get_buffer(f"{norm}.running_var"), 0.5, 2)
    return model.eval()


@pytest.fixture
def inputs():
    return torch.randn(37, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def outputs(cache, model):
    return torch.cat(list(cache.outputs(model)))


class TestPrefixCache:
    @pytest.mark.parametrize("layer", ["0", "3.0"])
    @pytest.mark.parametrize("ratio", [0.3, 0.8])
    def test_gives_the_model_s_outputs(self, inputs, layer, ratio):
        model = chain()
        cache = PrefixCache(model, inputs)
        for method in taking(td.ConvSpec.of(model.get_submodule(layer))):
            small = td.decompose(model, layer, method, ratio)
            assert torch.allclose(outputs(cache, small), small(inputs), atol=1e-5)
        assert torch.allclose(outputs(cache, model), model(inputs), atol=1e-5)

    def test_in_bfloat16(self, inputs):
        model = chain()
        small = td.decompose(model, "3.0", "tucker", 0.6)
        rounded, exact = outputs(PrefixCache(model, inputs, autocast=True), small), small(inputs).detach()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = small(inputs)
        assert rounded.dtype == expected.dtype == torch.bfloat16
        assert 0 < (rounded - exact).norm() < 2 * (expected - exact).norm() + 1e-3 * exact.norm()
        assert not torch.is_autocast_enabled("cpu")

    def test_runs_the_beginning_once(self, inputs, monkeypatch):
        model = chain()
        cache = PrefixCache(model, inputs)
        seen = []
        run = prefix._run
        monkeypatch.setattr(prefix, "_run", lambda part, *rest: seen.append(len(part)) or run(part, *rest))
        for method in taking(td.ConvSpec.of(model.get_submodule("3.0")))[:2]:
            outputs(cache, td.decompose(model, "3.0", method, 0.5))
        assert len(seen) == 1

    @pytest.mark.parametrize(("width", "batches"), [(8, 4), (256, 1)])
    def test_batches_are_worth_their_weights(self, width, batches, monkeypatch):
        monkeypatch.setattr(prefix, "activation_budget", lambda device: 8 * 8 * 4)
        model, inputs = nn.Sequential(nn.ReLU(), nn.Linear(width, width)).eval(), torch.randn(32, width)
        found = list(PrefixCache(model, inputs).outputs(model))
        assert len(found) == batches
        assert torch.allclose(torch.cat(found), model(inputs), atol=1e-5)

    def test_what_differs_before_is_seen(self, inputs):
        model = chain()
        cache = PrefixCache(model, inputs)
        small: Any = td.decompose(model, "3.0", "tucker", 0.5)
        outputs(cache, small)
        with torch.no_grad():
            small[1].running_mean += 0.5
        assert torch.allclose(outputs(cache, small), small(inputs), atol=1e-5)

    def test_going_back_and_forth(self, inputs):
        model = chain()
        cache = PrefixCache(model, inputs)
        for layer in ("3.0", "0", "3.0"):
            small = td.decompose(model, layer, "tucker", 0.5)
            assert torch.allclose(outputs(cache, small), small(inputs), atol=1e-5)

    @pytest.mark.parametrize("limit", [0, 37 * 6 * 81 * 4])
    def test_keeps_no_more_than_the_limit(self, inputs, limit):
        model = chain()
        cache = PrefixCache(model, inputs, limit)
        small = td.decompose(model, "3.0", "tucker", 0.5)
        assert torch.allclose(outputs(cache, small), small(inputs), atol=1e-5)
        assert cache._kept is cache._inputs or cache._kept.numel() * 4 <= limit

    def test_blocks_and_other_models(self):
        shape = Shape(BasicBlock, (1, 1, 1), widths=(8, 16, 32))
        model = seeded(lambda: ResNet(shape, in_channels=3), 0).eval()
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        small = td.decompose(model, "layer3.0.conv2", "tucker", 0.9)
        assert "layer3.0" in dict(links(small))
        with torch.no_grad():
            expected = small(images)
        assert torch.allclose(outputs(PrefixCache(model, images), small), expected, atol=1e-4)

        class Wrapped(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, images):
                return 2 * self.inner(images)

        other = PrefixCache(Wrapped(model), images)
        assert [name for name, _ in links(Wrapped(model))] == [""]
        assert torch.allclose(outputs(other, Wrapped(small)), 2 * expected, atol=1e-4)

    def test_models_are_left_as_they_were(self, inputs):
        model = chain().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        outputs(PrefixCache(model, inputs), td.decompose(model, "3.0", "tt", 0.5))
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def seeded_chain(*modules):
    model = nn.Sequential(*modules)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(0.2 + torch.rand(tensor.shape, generator=generator))
                tensor -= 0.4 * (tensor.ndim > 1)
    return model.eval()


def drawn(shape, count=37):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def check(model, inputs, cache=None):
    """What the cache gives is what the model gives, however often, and the inputs stay as they are."""
    before = inputs.clone()
    cache = cache or PrefixCache(model, inputs)
    with torch.no_grad():
        expected = model(inputs.clone())
    for _ in range(2):
        assert torch.allclose(outputs(cache, model), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(inputs, before)
    return cache


HARD = {
    "Conv3d": ((2, 5, 5, 5), [nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 2), nn.Flatten()]),
    "Conv1d": ((2, 9), [nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 2)]),
    "a norm without running statistics": (
        (3, 6, 6),
        [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 4, 3)],
    ),
    "one that refuses single samples": (
        (3, 4, 4),
        [nn.Conv2d(3, 4, 4), nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)],
    ),
    "identity, then in place": ((3, 4, 4), [nn.Identity(), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)]),
    "in place at once": ((3, 4, 4), [nn.Hardswish(inplace=True), nn.Conv2d(3, 4, 3)]),
    "flat, then in place": ((3, 4, 4), [nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(48, 4)]),
    "a view, then in place": ((3, 4, 4), [Calls(lambda x: x[:, 1:].mT), Calls(lambda x: x.mul_(-1)), nn.Flatten()]),
    "an activation of ours behind a view": ((12,), [Calls(lambda x: x.view(-1, 3, 4)), nn.ReLU(), nn.Linear(4, 2)]),
    "in place on what is kept": (
        (3, 4, 4),
        [nn.Conv2d(3, 4, 3), nn.Identity(), nn.Hardswish(inplace=True), nn.Conv2d(4, 4, 1)],
    ),
    "nothing but the inputs": ((5,), [nn.Identity(), nn.Dropout()]),
    "a view that needs the plain memory format": (
        (3, 6, 6),
        [nn.Conv2d(3, 4, 3), nn.ReLU(), Calls(lambda x: x.view(len(x), -1)), nn.Linear(64, 4)],
    ),
    "samples that become more and fewer": (
        (4, 3, 5, 5),
        [nn.Flatten(0, 1), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Unflatten(0, (-1, 4)), nn.Flatten(), nn.Linear(144, 2)],
    ),
    "outputs that are tuples": ((5, 3), [nn.LSTM(3, 4), Calls(lambda pair: pair[0]), nn.Linear(4, 2)]),
    "transposed, with its norm": ((3, 4, 4), [nn.ConvTranspose2d(3, 3, 2), nn.BatchNorm2d(3), nn.ReLU()]),
    "instance norm": ((3, 5, 5), [nn.Conv2d(3, 4, 2), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)]),
}


@pytest.mark.parametrize("what", HARD)
def test_chains_that_are_hard(what):
    shape, modules = HARD[what]
    model, inputs = seeded_chain(*modules), drawn(shape)
    cache = check(model, inputs)
    convs = [
        n for n, m in model.named_children() if isinstance(m, nn.modules.conv._ConvNd) and m.weight[0, 0].numel() > 1
    ]
    for name in convs:
        for ratio in (0.1, 0.5):
            check(td.decompose(model, name, "svd", ratio), inputs, cache)


def test_a_module_that_stands_twice_in_a_chain_runs_twice():
    conv, relu, norm = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(3)
    model = seeded_chain(relu, conv, norm, relu, conv, nn.Sequential(relu, conv), conv, norm)
    assert len(links(model)) == 9
    inputs = drawn((3, 5, 5))
    cache = check(model, inputs)
    check(td.decompose(model, "1", "svd", 0.5), inputs, cache)


def test_hooks_are_run():
    model = seeded_chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    for place in range(4):
        small: Any = td.decompose(model, "3", "svd", 0.2)
        small[place].register_forward_hook(lambda module, args, output: 2 * output)
        inputs = drawn((3, 5, 5))
        check(small, inputs, PrefixCache(model, inputs))
    small = td.decompose(model, "0", "svd", 0.1)  # run dense if it had none
    small[0].register_forward_hook(lambda module, args, output: -output)
    check(small, inputs, PrefixCache(model, inputs))


def test_a_buffer_that_is_not_saved_tells_models_apart():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()), persistent=False)

        def forward(self, x):
            return self.scale * x

    model = nn.Sequential(Scaled(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    inputs = drawn((3, 6, 6))
    cache = check(model, inputs)
    other: Any = td.decompose(model, "2", "svd", 0.5)
    other[0].scale.fill_(3)
    check(other, inputs, cache)


def test_no_setting_of_the_caller_s_is_changed_between_batches(inputs):
    cache = PrefixCache(chain(), inputs)
    for _ in cache.outputs(chain()):
        assert torch.is_grad_enabled()


LINKS = {
    "conv": lambda: nn.Conv2d(3, 3, 3, padding=1),
    "norm": lambda: nn.BatchNorm2d(3),
    "bare norm": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "hardswish in place": lambda: nn.Hardswish(inplace=True),
    "identity": nn.Identity,
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
    "negated in place": lambda: Calls(lambda x: x.neg_()),
    "half of it in place": lambda: Calls(lambda x: x[:, ::2].mul_(0.5).sum() * 0 + x),
    "a view": lambda: Calls(lambda x: x.mT),
    "reshaped": lambda: Calls(lambda x: x.reshape(len(x), -1).reshape(len(x), 3, 4, 4)),
    "viewed": lambda: Calls(lambda x: x.contiguous().view(len(x), -1).view(len(x), 3, 4, 4)),
    "nested": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
}


@cases(60)
@given(st.lists(st.sampled_from(sorted(LINKS)), min_size=1, max_size=6), st.data())
def test_drawn_chains(names, data):
    repeated = data.draw(st.booleans())
    made = {name: LINKS[name]() for name in names}
    model = seeded_chain(*(made[name] if repeated else LINKS[name]() for name in names))
    inputs = drawn((3, 4, 4), 9)
    cache = check(model, inputs)
    convs = [name for name, module in model.named_children() if isinstance(module, nn.Conv2d)]
    for name in convs[-2:]:
        check(td.decompose(model, name, "svd", 0.4), inputs, cache)


def test_folding_leaves_inputs_alone_and_merges_norms(inputs):
    model = chain()
    short = folded(nn.Sequential(*(link for _, link in links(model))))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in short.modules())
    kept = inputs.clone()
    assert torch.allclose(short(inputs), model(inputs), atol=1e-5)
    assert torch.equal(inputs, kept)


def test_a_stack_as_large_as_the_dense_convolution_is_run_as_that():
    model = chain()
    stacks: list[Any] = [td.decompose(model, "0", "tucker", ratio) for ratio in (0.1, 0.8)]
    large, small = map(folded, stacks)
    assert type(large[0]) is nn.Conv2d
    assert isinstance(small[0], nn.Sequential)


class TestFeatures:
    @pytest.mark.parametrize("limit", [0, 2**30])
    @pytest.mark.parametrize("kind", ["tensor", "batches", "pairs", "dicts"])
    def test_equals_approximation_errors(self, inputs, limit, kind):
        model = chain()
        batches = inputs.split(10)
        data = {
            "tensor": inputs,
            "batches": list(batches),
            "pairs": [(batch, torch.zeros(len(batch))) for batch in batches],
            "dicts": [{"input": batch} for batch in batches],
        }[kind]
        small = td.decompose(model, "3.0", "cp", 0.5)
        metrics = get_metrics(["absolute_features", "relative_features"])
        found = Features(model, "3.0", data, limit).errors(small.get_submodule("3.0"), metrics)
        expected = td.approximation_errors(model, small, [metric.name for metric in metrics], data)["3.0"]
        assert found == pytest.approx(expected, rel=1e-5)

    def test_a_layer_that_is_used_twice(self, inputs):
        conv = nn.Conv2d(3, 3, 3, padding=1)
        model = nn.Sequential(conv, nn.ReLU(), conv)
        small: Any = td.decompose(model, "0", "tucker", 0.5)
        metrics = get_metrics(["relative_features"])
        found = Features(model, "0", inputs).errors(small[0], metrics)
        assert found == pytest.approx(
            td.approximation_errors(model, small, ["relative_features"], inputs)["0"], rel=1e-5
        )

    def test_nothing_behind_the_layer_is_run(self, inputs):
        model = chain()
        calls = []
        model[4].register_forward_hook(lambda *_: calls.append(1))
        list(Features(model, "0", inputs))
        assert len(calls) == 1  # the first sample, which shows that the layer is reached once

    def test_no_data_and_a_layer_that_is_not_reached(self, inputs):
        model = chain()
        with pytest.raises(td.CompressionError, match="the data is empty"):
            Features(model, "0", [])
        with pytest.raises(td.CompressionError, match="the data is empty"):
            Features(model, "0", inputs[:0])

        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, images):
                return images

        with pytest.raises(td.CompressionError, match="never reached 'conv'"):
            Features(Idle(), "conv", inputs)
