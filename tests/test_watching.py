"""What layers are called with, by whatever way and however often, and everything that is computed from it."""

import os
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.batches import evaluating
from tdcompress.metrics import get_metrics
from tdcompress.report.measuring import as_call, layer_calls
from tdcompress.study.features import Features
from tdcompress.watching import Call, Reached, calls_of, run, watching
from tests.drawing import more

FEATURES = ["relative_features"]


class Net(nn.Module):
    """A layer called by position or keyword, any number of times, with or without an in-place activation behind it."""

    def __init__(self, keyword=False, times=1, inplace=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace)
        self.head = nn.Linear(8, 4)
        self.keyword, self.times = keyword, times

    def forward(self, x):
        x = self.act(self.stem(input=x) if self.keyword else self.stem(x))
        for _ in range(self.times):
            x = self.act(self.conv(input=x) if self.keyword else self.conv(x))
        x = self.act(self.norm(input=x) if self.keyword else self.norm(x)).mean((2, 3))
        return self.head(input=x) if self.keyword else self.head(x)


TIMES = (0, 1, 2, 5)
VARIANTS = [
    pytest.param(
        {"keyword": keyword, "times": times, "inplace": inplace},
        id=f"{keyword}-{times}-{inplace}",
        # Those of a quick run have each two of these with each other.
        marks=() if (keyword + TIMES.index(times) + inplace) % 2 else pytest.mark.full,
    )
    for keyword in (False, True)
    for times in TIMES
    for inplace in (False, True)
]


def net(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**changes).eval()


def images(count=12, seed=1):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def plain_twin(model):
    """The same network, called by position and without anything in place."""
    twin = Net(times=model.times).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def called(times):
    return ["stem", "head"] + ["conv"] * bool(times)


class TestWatching:
    def test_calls_are_noted_in_order_with_what_is_said(self):
        model, x = net(times=2), images()
        noted = []
        with torch.no_grad(), watching({"conv": model.conv, "stem": model.stem}, lambda n, c: noted.append((n, c))):
            answer = run(model, x)
        assert [name for name, _ in noted] == ["stem", "conv", "conv"]
        assert torch.equal(answer, model(x))
        for name, call in noted:
            assert torch.equal(call.output, call.on(getattr(model, name)))
            assert call.first_output is call.output

    def test_as_they_begin(self):
        model = net(times=1)
        noted = []
        with watching({"conv": model.conv}, lambda _, call: noted.append(call.output), outputs=False):
            run(model, images())
        assert noted == [None]

    def test_a_module_under_several_names_is_noted_under_each(self):
        model, noted = net(), []
        with watching({"a": model.conv, "b": model.conv}, lambda name, _: noted.append(name)):
            run(model, images())
        assert noted == ["a", "b"]

    @pytest.mark.parametrize("error", [td.CompressionError("no"), Reached(), ValueError("other"), KeyboardInterrupt()])
    def test_no_hook_stays_and_the_layer_is_named(self, error):
        model = net()

        def note(name, call):
            raise error

        def go():
            with watching({"conv": model.conv, "stem": model.stem}, note):
                return run(model, images())

        if isinstance(error, Reached):
            assert go() is None
        else:
            with pytest.raises(type(error)) as caught:
                go()
            assert str(caught.value) == ("layer 'stem': no" if type(error) is td.CompressionError else str(error))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_the_forward_ends_where_enough_was_seen(self):
        model, after = net(times=5), []
        model.head.register_forward_hook(lambda *_: after.append(1))
        calls = calls_of(model, {"conv": model.conv, "stem": model.stem}, images(), most=1)
        assert {name: len(found) for name, found in calls.items()} == {"conv": 1, "stem": 1}
        assert not after

    def test_a_layer_that_is_never_called_has_no_calls(self):
        model = net(times=0)
        assert calls_of(model, {"conv": model.conv}, images()) == {"conv": []}
        assert calls_of(model, {"conv": model.conv}, images(), most=2) == {"conv": []}

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("most", [None, 1, 2])
    def test_what_is_kept_is_what_was_said(self, variant, most):
        model, x = net(**variant), images()
        calls = calls_of(model, {"conv": model.conv}, x, most=most)["conv"]
        assert len(calls) == min(variant["times"], most or 9)
        with torch.no_grad():
            expected = model.stem(x).relu()
            for call in calls:
                assert torch.equal(call.input, expected)
                assert torch.equal(call.first_output, model.conv(expected))
                expected = model.conv(expected).relu()


class TestCall:
    def test_the_input_however_it_is_passed(self):
        x = torch.zeros(2, 3)
        for call in (Call((x,), {}), Call((), {"input": x}), Call((), {"x": x, "scale": 2}), Call((x, x), {"mask": x})):
            assert call.input is x

    @pytest.mark.parametrize(
        "call",
        [Call((), {}), Call(([torch.zeros(1)],), {}), Call((), {"a": torch.zeros(1), "b": torch.zeros(1)})],
        ids=["nothing", "list", "two"],
    )
    def test_no_input(self, call):
        with pytest.raises(td.CompressionError, match="does not say what its input is"):
            _ = call.input

    def test_the_first_tensor_of_an_output(self):
        x, y = torch.zeros(2), torch.ones(3)
        for output in (x, (x, y), [None, x], {"a": x, "b": y}, ((x,), y)):
            assert Call((), {}, output).first_output is x
        with pytest.raises(td.CompressionError, match="without a tensor"):
            _ = Call((), {}, (None, 3)).first_output

    def test_a_kept_call_shares_no_memory_and_keeps_what_is_no_tensor(self):
        x, marker = torch.randn(3, requires_grad=True), object()
        pair = torch.return_types.max((x, torch.zeros(3)))
        call = Call((x, [x, 2]), {"d": {"x": x}, "m": marker}, pair)
        kept = call.kept()
        assert kept.kwargs["m"] is marker
        assert kept.args[1][1] == 2
        found = [kept.args[0], kept.args[1][0], kept.kwargs["d"]["x"], kept.output[0]]
        assert len({id(tensor) for tensor in found}) == 1  # one tensor is copied once
        with torch.no_grad():
            expected = x.clone()
            x.zero_()
        assert torch.equal(found[0], expected)
        assert not found[0].requires_grad
        assert type(kept.output[1]) is torch.Tensor
        assert call.kwargs["d"]["x"] is x  # the call itself is as it was
        assert call.nbytes == 24

    def test_named_tuples_stay_what_they_are(self):
        from collections import namedtuple

        Pair = namedtuple("Pair", "a b")
        pair = Pair(torch.ones(1), None)
        assert type(Call((), {}, pair).kept().output) is type(pair)


# --- whatever is computed from calls, against a twin that is called by position with nothing in place ----


@pytest.mark.parametrize("variant", VARIANTS)
class TestEveryUse:
    def test_moments(self, variant):
        model = net(**variant)
        found, expected = (td.input_moments(one, images()) for one in (model, plain_twin(model)))
        assert set(found) == set(called(variant["times"]))
        for name, moments in found.items():
            assert moments.count == expected[name].count
            assert torch.equal(moments.mean, expected[name].mean)

    def test_approximation_errors(self, variant):
        model = net(**variant)
        small: Any = td.decompose(model, called(variant["times"]), "svd", 0.5)
        data = images().split(5)
        found = td.approximation_errors(model, small, FEATURES, data)
        assert found == td.approximation_errors(plain_twin(model), small, FEATURES, data)
        if variant["times"]:  # by hand: every call counts
            with torch.no_grad():
                x, apart = model.stem(images()).relu(), []
                for _ in range(variant["times"]):
                    before, after = model.conv(x), small.conv(x)
                    apart.append(((before - after).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean())
                    x = before.relu()
            assert found["conv"]["relative_features"] == pytest.approx(float(sum(apart) / len(apart)), rel=1e-5)

    @pytest.mark.parametrize("limit", [0, 2**30])
    def test_the_study_s_features(self, variant, limit):
        model = net(**variant)
        for name in called(variant["times"]):
            small = td.decompose(model, name, "svd", 0.5)
            features = Features(model, name, images(), limit)
            expected = td.approximation_errors(plain_twin(model), small, FEATURES, images())[name]
            for _ in range(2):
                found = features.errors(small.get_submodule(name), get_metrics(FEATURES))
                assert found == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("fit", ["all", *more("bias", "last")])
    def test_calibrate(self, variant, fit):
        model = net(**variant)
        small = td.decompose(model, called(variant["times"]), "svd", 0.5)
        twin = td.decompose(plain_twin(model), called(variant["times"]), "svd", 0.5)
        data = [images(), images(8, seed=2)]
        found = td.calibrate(small, data, model, fit=fit).state_dict()
        expected = td.calibrate(twin, data, plain_twin(model), fit=fit).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())

    def test_report_and_plan(self, variant):
        model = net(**variant)
        twin = plain_twin(model)
        layers = {name: model.get_submodule(name) for name in ("stem", "conv", "head")}
        with torch.no_grad(), evaluating(model):
            calls = layer_calls(model, layers, as_call(images(2)))
        assert len(calls.get("conv", [])) == variant["times"]
        small, other = (td.decompose(one, called(variant["times"]), "svd", 0.5) for one in (model, twin))
        found, expected = (td.report(one, images(2), rounds=1) for one in (small, other))
        assert [entry.cost.multiply_adds for entry in found.layers] == [
            entry.cost.multiply_adds for entry in expected.layers
        ]
        how: dict[str, Any] = {"objective": "macs", "example_inputs": images(2), "methods": "svd"}
        plan, twins = (td.plan(one, 0.5, **how) for one in (model, twin))
        assert plan == twins


def test_inputs_that_are_overwritten_later_are_kept_for_the_report():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = x + 1
            y = self.conv(x)
            x.zero_()
            return y

    model = Overwrites()
    with torch.no_grad():
        calls = layer_calls(model, {"conv": model.conv}, as_call(torch.ones(1, 3, 2, 2)))
    assert torch.equal(calls["conv"][0].input, torch.full((1, 3, 2, 2), 2.0))


def test_outputs_that_are_tuples():
    class Tupled(nn.Linear):
        def forward(self, x, scale=1.0):
            return super().forward(x), None

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)
            self.layer = Tupled(6, 6)

        def forward(self, x):
            return self.layer(x=self.inner(x))[0].relu_()

    model = Model().eval()
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    calls = calls_of(model, {"layer": model.layer}, x)["layer"]
    with torch.no_grad():
        assert torch.equal(calls[0].first_output, model.layer(model.inner(x))[0])
        assert torch.equal(calls[0].input, model.inner(x))
    assert td.input_moments(model, x, "layer")["layer"].count == 10


def test_what_a_metric_refuses_is_said_with_the_layer_s_name(monkeypatch):
    td.register_metric("not-per-sample", on="features")(lambda a, b: (a - b).norm())
    try:
        model = net()
        small: Any = td.decompose(model, "conv", "svd", 0.5)
        with pytest.raises(td.CompressionError, match=r"^layer 'conv': metric 'not-per-sample'"):
            td.approximation_errors(model, small, ["not-per-sample"], images())
        with pytest.raises(td.CompressionError, match=r"^layer 'conv': metric 'not-per-sample'"):
            Features(model, "conv", images()).errors(small.conv, get_metrics(["not-per-sample"]))
    finally:
        del td.metrics.METRICS["not-per-sample"]


def test_pytorch_s_own_encoder_layer_takes_no_shortcut_past_the_hooks():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    seen = td.input_moments(layer, torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)))
    assert {"linear1", "linear2"} <= set(seen)


# --- architectures of transformers ----------------------------------------------------------------------


def bert(transformers):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(0, 50, (4, 7), generator=generator)} for _ in range(2)]
    return transformers.BertForSequenceClassification(config), batches


def vit(transformers):
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    return transformers.ViTForImageClassification(config), [torch.randn(4, 3, 16, 16), torch.randn(2, 3, 16, 16)]


def wav2vec2(transformers):
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_feat_extract_layers=2,
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, apply_spec_augment=False,
    )  # fmt: skip
    return transformers.Wav2Vec2Model(config), [torch.randn(2, 400), torch.randn(3, 400)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("build", [bert, vit, wav2vec2])
def test_architectures_of_transformers(build):
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="the models need the extra dev")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batches = build(transformers)
    model.eval()
    refused = td.refusals(model, "svd", 0.3)
    names = [name for name, module in td.surgery.select_layers(model, "*", linear=True) if name not in refused]
    layers = {name: model.get_submodule(name) for name in names}
    calls = calls_of(model, layers, batches[0])
    assert all(calls.values())
    with torch.no_grad():
        for name, found in calls.items():
            for call in found:
                assert torch.equal(call.on(layers[name]), call.first_output)
    moments = td.input_moments(model, batches, names)
    for name, seen in moments.items():
        if isinstance(layers[name], nn.Linear):
            rows = torch.cat([c.input.flatten(0, -2) for b in batches for c in calls_of(model, layers, b)[name]])
            assert seen.count == len(rows)
            assert torch.allclose(seen.mean.flatten(), rows.double().mean(0), atol=1e-6)
    small = td.decompose(model, names, "svd", 0.3)
    errors = td.approximation_errors(model, small, FEATURES, batches)
    assert set(errors) == set(names)
    assert all(0 < error["relative_features"] < 1 for error in errors.values())
    better = td.approximation_errors(model, td.calibrate(small, batches, model, fit="last"), FEATURES, batches)
    assert set(better) == set(errors)
    whole = td.report(small, batches[0], rounds=1)
    assert all(entry.cost.multiply_adds and entry.cost.multiply_adds[1] > 0 for entry in whole.layers)
    # A block is called with keywords and answers with a tuple, or with a dataclass where it is the model.
    blocks = {name: module for name, module in model.named_modules() if type(module).__name__.endswith("Layer")}
    for found in calls_of(model, {"": model, **blocks}, batches[0]).values():
        assert all(isinstance(call.first_output, torch.Tensor) for call in found)
