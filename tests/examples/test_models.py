import csv
import doctest
import importlib
from pathlib import Path

import pytest
import torch

from examples.paper import models
from examples.paper.models import DigitsNet, GaripovNet, resnet18, seeded

RANKS = Path(models.__file__).parent / "published" / "ranks.csv"
NETWORKS = {"GaripovNet": lambda: GaripovNet(in_channels=1), "ResNet-18": lambda: resnet18(in_channels=3)}


def published_kernels():
    with RANKS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = ("out_channels", "in_channels", "kernel_h", "kernel_w")
    return sorted({(row["model"], row["layer"], tuple(int(row[size]) for size in sizes)) for row in rows})


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: GaripovNet(in_channels=1), 556_490),
        (lambda: GaripovNet(in_channels=3), 557_642),
        (lambda: resnet18(in_channels=3), 11_173_962),
    ],
)
def test_the_number_of_parameters_is_the_papers(build, parameters):
    assert sum(parameter.numel() for parameter in build().parameters()) == parameters


def test_the_published_layers_are_all_there():
    names = {(model, layer) for model, layer, _ in published_kernels()}
    assert len(names) == 13
    for model, build in NETWORKS.items():
        modules = dict(build().named_modules())
        for _, layer, shape in (kernel for kernel in published_kernels() if kernel[0] == model):
            assert modules[layer].weight.shape == shape


def test_resnet_has_the_names_of_torchvisions():
    names = {name for name, _ in resnet18(in_channels=3).named_parameters()}
    convolutions = {name for name in names if "conv" in name or "downsample.0" in name}
    assert len(names) == 62
    assert len(convolutions) == 20
    assert {"conv1.weight", "bn1.bias", "layer4.0.downsample.1.weight", "layer1.0.bn2.bias", "fc.bias"} <= names


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: GaripovNet(in_channels=1), (2, 1, 28, 28)),
        (lambda: GaripovNet(in_channels=3, num_classes=7), (2, 3, 32, 32)),
        (lambda: resnet18(in_channels=3, num_classes=7), (2, 3, 32, 32)),
        (DigitsNet, (2, 1, 8, 8)),
    ],
)
def test_every_network_is_the_chain_of_its_children(build, shape):
    model = build().eval()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = features = model(images)
        features = images
        for _, child in model.named_children():
            features = child(features)
    assert expected.shape == (2, model.fc.out_features)
    assert torch.equal(features, expected)


def test_garipov_has_batchnorm_after_the_first_five_convolutions_only():
    names = [name for name, _ in GaripovNet(in_channels=1).named_children()]
    after = {name: names[names.index(name) + 1] for name in names if name.startswith("conv")}
    assert after == {**{f"conv{n}": f"bn{n}" for n in range(1, 6)}, "conv6": "pool6"}


def test_resnet_halves_the_image_in_groups_two_to_four():
    model = resnet18(in_channels=3).eval()
    sizes = []
    with torch.inference_mode():
        features = torch.zeros(1, 3, 32, 32)
        for name, child in model.named_children():
            features = child(features)
            if name.startswith("layer"):
                sizes.append(tuple(features.shape[1:]))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_seeded_networks_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    first, second, other = (seeded(DigitsNet, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv3.weight, second.conv3.weight)
    assert not torch.equal(first.conv3.weight, other.conv3.weight)


def test_a_failing_factory_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        seeded(lambda: 1 / 0, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("module", ["augmentation", "data", "models", "recipes", "reference"])
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(f"examples.paper.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
