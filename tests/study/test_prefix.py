import pytest
import torch
from torch import nn

import tdcompress as td
from examples.paper.models import resnet18, seeded
from tdcompress.metrics import get_metrics
from tdcompress.study import PrefixCache, prefix
from tdcompress.study.features import Features
from tdcompress.study.prefix import folded, links


def chain():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), body, head)
    for norm in (model[1], body[1]):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
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
        for method in ("cp", "tucker", "tt"):
            small = td.decompose(model, layer, method, ratio)
            assert torch.allclose(outputs(cache, small), small(inputs), atol=1e-5)
        assert torch.allclose(outputs(cache, model), model(inputs), atol=1e-5)

    def test_runs_the_beginning_once(self, inputs, monkeypatch):
        model = chain()
        cache = PrefixCache(model, inputs)
        seen = []
        run = prefix._run
        monkeypatch.setattr(prefix, "_run", lambda part, *rest: seen.append(len(part)) or run(part, *rest))
        for method in ("cp", "tucker"):
            outputs(cache, td.decompose(model, "3.0", method, 0.5))
        assert len(seen) == 1

    def test_what_differs_before_is_seen(self, inputs):
        model = chain()
        cache = PrefixCache(model, inputs)
        small = td.decompose(model, "3.0", "tucker", 0.5)
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
        model = seeded(lambda: resnet18(3), 0).eval()
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


def test_folding_leaves_inputs_alone_and_merges_norms(inputs):
    model = chain()
    short = folded(nn.Sequential(*(link for _, link in links(model))))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in short.modules())
    kept = inputs.clone()
    assert torch.allclose(short(inputs), model(inputs), atol=1e-5)
    assert torch.equal(inputs, kept)


def test_a_stack_as_large_as_the_dense_convolution_is_run_as_that():
    model = chain()
    large, small = (folded(td.decompose(model, "0", "tucker", ratio)) for ratio in (0.1, 0.8))
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
        small = td.decompose(model, "0", "tucker", 0.5)
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
