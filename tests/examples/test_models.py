import csv
import doctest
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.paper import models
from examples.paper.blocks import PaddedShortcut
from examples.paper.models import DigitsNet, GaripovNet, digits_resnet, resnet18, resnet50, seeded

EXAMPLES = Path(models.__file__).parents[1]
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
        (lambda: resnet50(in_channels=1, num_classes=7), (2, 1, 28, 28)),
        (DigitsNet, (2, 1, 8, 8)),
        (digits_resnet, (2, 1, 8, 8)),
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


def shapes(model, size):
    """What comes out of the stem and of each group, for one image of size × size pixels."""
    found = {}
    with torch.inference_mode():
        features = torch.zeros(1, model.conv1.in_channels, size, size)
        for name, child in model.eval().named_children():
            features = child(features)
            if name.startswith(("conv", "layer")):
                found[name] = tuple(features.shape[1:])
    return found


def test_resnet50_halves_the_image_in_its_stem_and_in_groups_two_to_four():
    model = resnet50(in_channels=1)
    assert shapes(model, 28) == {
        "conv1": (64, 14, 14),
        "layer1": (256, 14, 14),
        "layer2": (512, 7, 7),
        "layer3": (1024, 4, 4),
        "layer4": (2048, 2, 2),
    }
    strides = {name: module.stride for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    halving = {f"layer{group}.0.{name}" for group in (2, 3, 4) for name in ("conv2", "downsample.0")}
    assert {name for name, stride in strides.items() if stride == (2, 2)} == {"conv1"} | halving


def test_resnet50_has_the_parameters_of_torchvisions():
    """With 3 input channels and 1000 classes."""
    parameters = sum(parameter.numel() for parameter in resnet50(in_channels=3, num_classes=1000).parameters())
    assert parameters == 25_557_032


def test_the_digits_resnet_has_eighteen_convolutions_in_its_blocks_and_shortcuts_without_parameters():
    model = digits_resnet()
    assert shapes(model, 8) == {"conv1": (16, 8, 8), "layer1": (16, 8, 8), "layer2": (24, 4, 4), "layer3": (48, 2, 2)}
    blocks = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and "layer" in name]
    assert len(blocks) == 18
    assert not any("downsample" in name for name, _ in model.named_parameters())


def test_a_padded_shortcut_keeps_every_second_pixel_and_adds_channels_of_zeros():
    features = torch.arange(32.0).reshape(1, 2, 4, 4)
    found = PaddedShortcut(extra_channels=1, stride=2)(features)
    assert torch.equal(found[:, :2], features[:, :, [0, 2]][..., [0, 2]])
    assert not found[:, 2].any()


def test_seeded_networks_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    first, second, other = (seeded(DigitsNet, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*(one.get_parameter("conv3.weight") for one in (first, second)))
    assert not torch.equal(*(one.get_parameter("conv3.weight") for one in (first, other)))


def failing() -> nn.Module:
    raise ZeroDivisionError


def test_a_failing_factory_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        seeded(failing, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "module",
    [
        ".".join(file.relative_to(EXAMPLES.parent).with_suffix("").parts)
        for file in sorted(EXAMPLES.rglob("*.py"))
        if "gallery" not in file.parts and ">>> " in file.read_text(encoding="utf-8")
    ],
)
def test_docstring_examples(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0
