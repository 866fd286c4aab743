"""Do trial compressions help to compare errors across layers? `python -m examples.budget.sensitivity digits`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tdcompress as td
from examples.paper.data import Split
from examples.paper.presets import PRESETS
from examples.paper.training import evaluate
from examples.paper.work import Source
from tdcompress.errors import CompressionError

METHODS = ("cp", "tucker", "tt")
RATIOS = (0.5, 0.75, 0.9)
_IMAGES = 1000
ERRORS = ("relative_weights", "weighted")
STATES = ("decomposed", "calibrated")


def trials(
    model: nn.Module, layers: Sequence[str], data: Sequence[torch.Tensor], test: Split
) -> Iterator[dict[str, Any]]:
    """One layer at a time: its error, what `td.plan` makes of it, and the cross-entropy before and after calibration.

    Args:
        model: the trained network.
        layers: names of the layers.
        data: unlabelled training images in batches.
        test: what the performance is measured on.
    """
    plan = td.plan(model, 0.9, methods=METHODS, layers=list(layers), data=data)
    for entry in plan.layers:
        for method in METHODS:
            for ratio in RATIOS:
                most = (1 - ratio) * entry.spec.numel
                fitting = [one for one in entry.options if one.method == method and one.parameters <= most]
                option = min(fitting, key=lambda one: one.error)
                row: dict[str, Any] = {"layer": entry.layer, "method": method, "ratio": ratio}
                row |= {"relative_weights": option.error, "weighted": option.loss}
                small = td.decompose(model, entry.layer, method, rank=option.rank, axes=option.axes)
                for state, one in zip(STATES, (small, td.calibrate(small, data, model)), strict=True):
                    row[state] = evaluate(one, test.images, test.labels).cross_entropy
                yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m examples.budget.sensitivity", description=__doc__)
    parser.add_argument("preset", choices=PRESETS, help="the network and its data")
    parser.add_argument("--images", type=int, help="how many test images; by default all")
    parser.add_argument("--data", help="folder of the data set; by default its usual place")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    source = Source(preset.setting, options.data)
    splits = source.splits()
    model, _ = preset.trained(source, Path("results/budget") / preset.name / "weights.safetensors")
    chosen = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[:_IMAGES]
    data = splits.train.images[chosen].split(100)
    table = list(trials(model, preset.layer_names(), data, splits.test.take(slice(options.images))))
    print("| error | " + " | ".join(f"{state}, across {what}" for state in STATES for what in ("layers", "all")) + " |")
    print("| --- |" + " --- |" * 2 * len(STATES))
    for error in ERRORS:
        cells = []
        for state in STATES:
            across = td.correlate(table, error, state, across="layer", run=None)
            everything = td.correlate(table, error, state, run=None)
            cells += [f"{across.mean:.3f}", f"{everything.mean:.3f}"]
        print(f"| {error} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except CompressionError as error:
        sys.exit(f"error: {error}")
