"""Is it worth fitting blocks between layers and the whole? `python -m examples.budget.blocks`, on the digits."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import tdcompress as td
from examples.budget.procedures import Task, data_aware
from examples.paper.data import Split
from examples.paper.presets import PRESETS
from examples.paper.training import evaluate
from examples.paper.work import Source
from tdcompress.watching import calls_of

_RATIO = 0.95
_PASSES = 30


class _Block(nn.Module):
    """Some layers, with what the original says beside their input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor, goal: Tensor) -> Tensor:
        """What the layers make of their input."""
        return self.layers(features)


class _Goal(nn.Module):
    """What the original says to the original's input."""

    def forward(self, features: Tensor, goal: Tensor) -> Tensor:
        """The goal itself."""
        return goal


def by_blocks(task: Task, small: nn.Module, passes: int) -> nn.Module:
    """Each convolution and its BatchNorm in turn, on the compressed network's inputs, to the original's features."""
    small = copy.deepcopy(small)
    for layer in task.layers:
        norm = layer.replace("conv", "bn")
        (seen,) = calls_of(small, {layer: small.get_submodule(layer)}, task.images)[layer]
        (said,) = calls_of(task.model, {norm: task.model.get_submodule(norm)}, task.images)[norm]
        pairs = zip(seen.input.split(task.batch), said.first_output.split(task.batch), strict=True)
        td.distill(
            _Block(small.get_submodule(layer), small.get_submodule(norm)),
            [{"features": features, "goal": goal} for features, goal in pairs],
            _Goal(),
            options=td.DistillationOptions(passes=passes, local=None, learning_rate=1e-2),
            logits=False,
            inplace=True,
        )
    return small


def trained_anew(name: str) -> tuple[Task, Split]:
    """The network of a preset, with all of its training images as what is compressed on, and what decides."""
    preset = PRESETS[name]
    source = Source(preset.setting, None)
    splits = source.splits()
    with tempfile.TemporaryDirectory() as folder:
        model, _ = preset.trained(source, Path(folder) / "weights.safetensors")
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    return Task(model, preset.layer_names(), splits.train.images[order]), splits.validation


def main() -> None:
    """Print the validation accuracy of each combination."""
    task, validation = trained_anew("digits")
    local = data_aware(task, _RATIO)
    blocks = by_blocks(task, local, _PASSES)

    def whole(small: nn.Module, passes: int) -> nn.Module:
        options = td.DistillationOptions(passes=passes, local=None, learning_rate=2e-2)
        return td.distill(small, task.images, task.model, options=options).model

    for name, found in {
        "local": local,
        "local, blocks": blocks,
        f"local, blocks, {_PASSES} passes of the whole": whole(blocks, _PASSES),
        f"local, {_PASSES} passes of the whole": whole(local, _PASSES),
        f"local, {2 * _PASSES} passes of the whole": whole(local, 2 * _PASSES),
    }.items():
        accuracy = evaluate(found, validation.images, validation.labels).accuracy
        print(f"{name}: {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
