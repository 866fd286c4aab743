"""The studies of deep networks for Fashion-MNIST, on small ones of the same kind."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from examples.budget import deep
from examples.paper import __main__ as command
from examples.paper.blocks import BasicBlock, Bottleneck
from examples.paper.data import Split, Splits
from examples.paper.models import ResNet, Shape, resnet18, resnet50
from examples.paper.presets import PRESETS
from examples.paper.train import SETTINGS, main
from tests.drawing import more

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {
    "resnet18-fmnist": Shape(BasicBlock, (1, 2), widths=(8, 16)),
    "resnet50-fmnist": Shape(Bottleneck, (1, 1), widths=(8, 8), stem=(7, 2)),
}
LAYERS = {"resnet18-fmnist": 1 + 2 + 4 + 1, "resnet50-fmnist": 1 + 3 + 3 + 2}


def stripes(path):
    """Images of 28×28 pixels, bright in one of ten columns."""
    labels = torch.arange(200) % 10
    images = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images[torch.arange(200), 0, :, 2 * labels + 4] += 3
    train, validation, test = (
        Split(*part) for part in zip(images.split([120, 40, 40]), labels.split([120, 40, 40]), strict=True)
    )
    return Splits("stripes", train, validation, test, torch.zeros(1), torch.ones(1))


@pytest.fixture(params=SHAPES)
def small(request, monkeypatch):
    """The name of a setting whose network and data are small."""
    name = request.param
    setting = replace(SETTINGS[name], build=lambda: ResNet(SHAPES[name], in_channels=1), load=stripes)
    monkeypatch.setitem(SETTINGS, name, setting)
    training = replace(setting.recipe, epochs=2, batch_size=40)
    preset = replace(PRESETS[name], training=training, images=20, threads=1)
    for program in (command, deep):
        monkeypatch.setattr(program, "PRESETS", {name: preset})
    return name


@pytest.mark.usefixtures("briefly")
def test_the_study_trains_the_network_and_decomposes_all_convolutions(small, tmp_path, capsys):
    arguments = [small, "--no-finetune", "--ratios", "0.5", "0.99", "--methods", "tucker", "tt", "--quiet"]
    assert command.main([*arguments, "--output", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "results.csv")
    layers = PRESETS[small].layer_names()
    assert len(layers) == LAYERS[small]
    assert set(frame["layer"]) == set(layers)
    assert {"test_error", "test_cross_entropy"} < set(frame)
    assert "validation_error" not in frame
    failed = LAYERS[small] * 2 * 2 - len(frame)
    assert failed > 0  # 99 % is more than a small layer can lose
    assert f"{failed} trials failed, the first of them" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "model.training.safetensors").exists()


def test_the_command_trains_in_bfloat16_and_says_what_came_of_it(small, tmp_path, capsys):
    assert SETTINGS[small].recipe.autocast
    assert SETTINGS[small].recipe.channels_last
    main([small, "--epochs", "1", "--quiet", "--output", str(tmp_path / "model.safetensors")])
    printed = capsys.readouterr().out
    for what in ("seconds: ", "test_accuracy: 0.", "weights: SHA-256 "):
        assert what in printed


def test_the_networks_are_the_papers_and_the_one_with_bottlenecks():
    parameters = {name: sum(parameter.numel() for parameter in SETTINGS[name].build().parameters()) for name in SHAPES}
    same = {"resnet18-fmnist": resnet18(1), "resnet50-fmnist": resnet50(1)}
    assert parameters == {name: sum(p.numel() for p in model.parameters()) for name, model in same.items()}


EVERY = tuple(deep.WAYS)


@pytest.mark.parametrize(
    ("small", "ways"),
    more(("resnet50-fmnist", EVERY), ("resnet18-fmnist", EVERY)),
    indirect=["small"],
)
def test_without_labels_in_several_ways(small, ways, tmp_path, capsys):
    arguments = [small, "--ratios", "0.5", "--inputs", "40", "--passes", "2", "--ways", *ways]
    arguments += ["--weights", str(tmp_path / "model.safetensors"), "--output", str(tmp_path)]
    deep.main(arguments)
    frame = pd.read_csv(tmp_path / "results.csv")
    assert list(frame["state"]) == ["dense", *ways]
    assert list(frame["ratio"]) == [0.0] + [0.5] * len(ways)
    dense, *smaller = frame["parameters"]
    assert all(0 < count < dense for count in smaller)
    assert frame["performance"].between(0, 1).all()
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in printed
    assert f"Dense: {100 * frame['performance'][0]:.2f}" in printed
    deep.main(arguments)  # nothing is computed again
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "results.csv"), frame)


def test_bits_are_told_to_four_digits():
    rows = [
        deep.Row(0.0, "dense", 1.3362, 4_935_680, 0.0),
        deep.Row(0.5, "planned by the weights", 1.4815, 2_573_312, 0.4),
    ]
    text = deep.as_markdown(rows, PRESETS["gpt-text"])
    assert "Test bits per byte, parameters" in text
    assert "Dense: 1.3362, 4.94 M." in text
    assert "| planned by the weights | 1.4815, 2.57 M, 0 s |" in text
