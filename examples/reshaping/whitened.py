"""Choose shapes of reshaped layers by weight and by features: `python -m examples.reshaping.whitened digits`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import tdcompress as td
from examples.command import run_command
from examples.reshaping.trials import PRESETS, RATIOS, inputs_of
from tdcompress.errors import CompressionError
from tdcompress.layers.reshaped import ReshapedConv
from tdcompress.methods import METHODS

_SEEN, _MEASURED = 10000, 2000  # training images for the moments, validation images for the errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Print for every layer, method and ratio the features' error with either shape, and how they compare."""
    options = _parser().parse_args(arguments)
    preset = PRESETS[options.preset]
    folder = Path(options.output or f"results/reshaping/{options.preset}")
    folder.mkdir(parents=True, exist_ok=True)
    splits = preset.splits(options.data)
    model = preset.trained(0, splits, folder)
    moments = td.input_moments(model, splits.train.images[:_SEEN], progress=False)
    inputs = inputs_of(model, list(moments), splits.validation.images[:_MEASURED])
    changes = []
    for name in moments:
        layer = model.get_submodule(name)
        for method, kind in METHODS.items():
            if not issubclass(kind, ReshapedConv):
                continue
            for ratio in options.ratios:
                try:
                    found = both(layer, kind, ratio, moments[name], inputs[name])
                except CompressionError:
                    continue  # no rank is small enough
                changes.append(found[1] / found[0])
                print(f"{name}\t{method}\t{ratio}\t{found[0]:.4f}\t{found[1]:.4f}", flush=True)
    mean = math.exp(sum(map(math.log, changes)) / len(changes))
    print(f"by the features over by the weight: mean {mean:.4f}, {min(changes):.4f} to {max(changes):.4f}")


def both(
    layer: nn.Module, kind: type[ReshapedConv], ratio: float, moments: td.InputMoments, inputs: Tensor
) -> tuple[float, float]:
    """The relative error of the features with the shape that is chosen by the weight, and with that by the features."""
    shape = kind.from_conv(layer, ratio=ratio)
    by_weight = kind.from_conv(layer, rank=shape.ranks, axes=shape.axes, whiten=moments)
    by_features = kind.from_conv(layer, ratio=ratio, whiten=moments)
    return _error(layer, by_weight, inputs), _error(layer, by_features, inputs)


def _error(layer: nn.Module, small: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        features, approximated = layer(inputs).double(), small(inputs).double()
    return float((features - approximated).norm() / (features - features.mean(0)).norm())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.reshaping.whitened", description=__doc__)
    parser.add_argument("preset", choices=PRESETS, help="the network and its data")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="shares of the weights to remove")
    parser.add_argument("--data", help="folder of the data set; by default its usual place")
    parser.add_argument("--output", help="folder of the trained network; by default results/reshaping/PRESET")
    return parser


if __name__ == "__main__":
    run_command(main)
