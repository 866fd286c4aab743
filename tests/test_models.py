"""Whole models of other people, and one of our own: decompose what can be, train, save, load, export."""

import copy
import functools
import os
import warnings

import pytest
import torch
from torch import nn

import tdcompress as td
from examples.paper.models import seeded
from tests.drawing import more

os.environ["HF_HUB_OFFLINE"] = "1"  # every model is built from a configuration; nothing may be fetched
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the models need the extra dev")

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SOUND = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 4}


class UNet(nn.Module):
    """Two levels down with strided convolutions, two up with transposed ones, and connections across."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding="same")
        self.down1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, padding_mode="reflect")
        self.down2 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 3, stride=2, padding=1, output_padding=1)
        self.up1 = nn.ConvTranspose2d(4 * width, width, 2, stride=2)
        self.head = nn.Conv2d(2 * width, 4, 1)

    def forward(self, x):
        first = self.stem(x).relu()
        second = self.down1(first).relu()
        x = self.up2(self.down2(second).relu())
        x = self.up1(torch.cat([x, second], 1))
        return self.head(torch.cat([x, first], 1))


def resnet():
    config = transformers.ResNetConfig(embedding_size=16, layer_type="basic", **SIZES)
    return transformers.ResNetForImageClassification(config)


def convnext():
    return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(num_stages=2, **SIZES))


def mobilenet():
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=4)
    return transformers.MobileNetV2ForImageClassification(config)


def regnet():
    config = transformers.RegNetConfig(embedding_size=16, groups_width=8, **SIZES)
    return transformers.RegNetForImageClassification(config)


def segformer():
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, sr_ratios=[2, 1], strides=[4, 2], patch_sizes=[7, 3], num_attention_heads=[1, 2],
        mlp_ratios=[2, 2], decoder_hidden_size=32, **SIZES,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def wav2vec2():
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_feat_extract_layers=2,
        conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, apply_spec_augment=False,
    )  # fmt: skip
    return transformers.Wav2Vec2Model(config)


MODELS = {build.__name__: build for build in (resnet, convnext, mobilenet, regnet, segformer, wav2vec2, UNet)}
pytestmark = [
    # MobileNetV2 has 52 convolutions; depthwise ones are ConvNeXt's too.
    pytest.mark.parametrize("name", [*(name for name in MODELS if name != "mobilenet"), *more("mobilenet")]),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # PyTorch's word on even kernels with "same" padding, for the dense convolution and its stages alike.
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]


@functools.cache
def built(name, seed):
    return seeded(MODELS[name], seed).eval()


def build(name, seed=0):
    return copy.deepcopy(built(name, seed))


def inputs(name):
    return SOUND if name == "wav2vec2" else IMAGE


def output(found):
    """The tensor that matters of whatever a model returns."""
    return found if isinstance(found, torch.Tensor) else found[0]


def forward(model, name):
    return output(model(inputs(name)))


@functools.cache
def refusals(name, method):
    return td.refusals(built(name, 0), method, 0.3, parametrized="bake")


@functools.cache
def compressed(name, method):
    def can_be(layer, module):
        return layer not in refusals(name, method)

    solver = td.CPOptions(max_iter=2) if method == "cp" else None
    return td.decompose(built(name, 0), can_be, method, 0.3, parametrized="bake", solver=solver)


def decomposed(name, method="tucker"):
    """Every convolution that can be, and every linear layer if the method takes them."""
    return copy.deepcopy(compressed(name, method))


@pytest.mark.parametrize("method", ["tucker", "svd", *more("cp", "tt")])
def test_every_layer_that_can_be_is_decomposed_and_the_rest_refused_by_name(name, method):
    model = build(name)
    refused = refusals(name, method)
    layers = [
        layer
        for layer, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) or (method == "svd" and isinstance(module, nn.Linear))
    ]
    assert set(refused) < set(layers)
    small = decomposed(name, method)
    for layer in layers:
        assert isinstance(small.get_submodule(layer), td.FactorizedConv) == (layer not in refused)
    assert forward(small, name).shape == forward(model, name).shape
    for layer, reason in list(refused.items())[:3]:
        with pytest.raises(td.CompressionError) as caught:
            td.decompose(model, layer, method, 0.3)
        assert str(caught.value) == f"layer {layer!r}: {reason}"
        assert "cannot make this layer smaller" in reason or "cannot reach ratio=0.3" in reason
    if refused:
        with pytest.raises(td.CompressionError, match="layer '"):  # a glob passes nothing over
            td.decompose(model, "*", method, 0.3, parametrized="bake")


def test_a_step_of_training_reaches_every_factor(name):
    small = decomposed(name).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    factors = [p for module in small.modules() if isinstance(module, td.FactorizedConv) for p in module.parameters()]
    with torch.random.fork_rng(devices=[]):  # for dropout
        torch.manual_seed(0)
        found = forward(small, name)
        (found - torch.randn_like(found)).square().mean().backward()
    assert all(factor.grad is not None and factor.grad.isfinite().all() for factor in factors)
    # Biases in front of a normalization have no gradient but rounding errors.
    weights = [factor for factor in factors if factor.ndim > 1]
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    assert any(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


@pytest.mark.parametrize("method", ["tucker", "svd"])
def test_saved_and_loaded_onto_a_fresh_model_it_does_the_same(name, method, tmp_path):
    small = decomposed(name, method)
    td.save(small, tmp_path / "small.safetensors")
    loaded = td.load(tmp_path / "small.safetensors", into=build(name, seed=1))
    assert torch.equal(forward(loaded, name), forward(small, name))
    assert (tmp_path / "small.safetensors").stat().st_size < 1.2 * sum(
        value.numel() * value.element_size() for value in small.state_dict().values()
    ) + 100_000


def test_exported_it_does_the_same(name):
    small = decomposed(name)
    with torch.no_grad():
        program = torch.export.export(small, (inputs(name),), strict=False)
        found = output(program.module()(inputs(name)))
        found = next(iter(found.values())) if isinstance(found, dict) else found
        assert torch.allclose(found, forward(small, name), atol=1e-4)


def test_restored_and_reported(name):
    small = decomposed(name)
    dense = td.restore(small)
    assert torch.allclose(forward(dense, name), forward(small, name), atol=1e-3)
    found = td.report(small, inputs(name), rounds=1)
    assert found.total.multiply_adds is not None
    assert found.total.multiply_adds[1] < found.total.multiply_adds[0]
    assert found.total.parameters[1] == sum(p.numel() for p in small.parameters())
    assert found.total.parameters[0] == sum(p.numel() for p in dense.parameters())
