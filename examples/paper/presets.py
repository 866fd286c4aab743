"""What a study is: which network, layers, methods, compression levels, repetitions and fine-tuning."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

import tdcompress as td
from examples.paper.data import Splits
from examples.paper.models import seeded
from examples.paper.reference import Published
from examples.paper.train import SETTINGS, Setting, load_checkpoint, save_checkpoint
from examples.paper.training import Recipe, train
from tdcompress.errors import CompressionError
from tdcompress.methods import get_method
from tdcompress.surgery import select_layers

CHECKPOINTS = Path(__file__).parent / "checkpoints"
RANKS = ("ours", "paper")


@dataclass(frozen=True)
class Preset:
    """A study; `dataclasses.replace` makes another of it.

    Attributes:
        name: what it is called on the command line.
        setting: the network, its data, and how it is trained and fine-tuned.
        layers: names or globs of the layers that are decomposed, one at a time.
        published: which of the paper's results stand beside this study's.
        checkpoint: the trained weights; None to train when the study starts.
        methods: registered names.
        ratios: shares of a layer's parameters to remove.
        runs: repetitions, each with its own seed.
        ranks: "ours", what tdcompress chooses for a ratio, or "paper", what the paper printed.
        solver: None for tdcompress's own, "tensorly" for the paper's.
        fine_tuning: what follows each decomposition; None for nothing.
        images: how many random training images feature errors are means over; None for all.
        seed: everything random depends on it.
        threads: of PyTorch on the CPU; None for as many as it takes by itself.

    Raises:
        CompressionError: an unknown method, no layers, or a number out of its range.
    """

    name: str
    setting: Setting
    layers: tuple[str, ...]
    published: Published
    checkpoint: Path | None = None
    methods: tuple[str, ...] = ("cp", "tucker", "tt")
    ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    runs: int = 5
    ranks: str = "ours"
    solver: str | None = None
    fine_tuning: Recipe | None = None
    images: int | None = 1000
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            get_method(method)
        if not (self.layers and self.methods and self.ratios):
            raise CompressionError("a study needs at least one layer, one method and one ratio")
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise CompressionError(f"ratios are shares to remove, between 0 and 1; found {ratio}")
        for name, value in (("runs", self.runs), ("images", self.images)):
            if value is not None and value < 1:
                raise CompressionError(f"{name} must be at least 1, found {value}")
        if self.ranks not in RANKS:
            raise CompressionError(f"unknown ranks {self.ranks!r}; choose one of {', '.join(RANKS)}")

    def choices(self) -> dict[str, Any]:
        """All that the results depend on, as JSON has it: two studies that agree here may share a table."""
        names = ("name", "layers", "methods", "ratios", "runs", "ranks", "solver", "images", "seed")
        recipe = None if self.fine_tuning is None else asdict(self.fine_tuning)
        return json.loads(json.dumps({**{name: getattr(self, name) for name in names}, "fine_tuning": recipe}))

    def solver_of(self, method: str) -> td.CPOptions | str | None:
        """What a method is solved with: CP begins at one random point a run, as in the paper.

        From the orthogonal start, which is the library's way, all runs would be the same one.
        """
        return td.CPOptions(starts=("random",)) if self.solver is None and method == "cp" else self.solver

    def layer_names(self) -> tuple[str, ...]:
        """The layers in full, in the network's order: globs are looked up in it.

        Raises:
            CompressionError: the network has no such layer.
        """
        model = seeded(self.setting.build, self.seed)
        chosen = {name for name, _ in select_layers(model, self.layers)}
        return tuple(name for name, _ in model.named_modules() if name in chosen)

    def trained(
        self, splits: Splits, file: Path, device: str = "cpu", progress: bool = True
    ) -> tuple[nn.Sequential, float]:
        """The trained network in evaluation mode, and the seconds that it took.

        Without a checkpoint the network is trained and kept in `file`, so that the same study goes on with the
        same weights.

        Args:
            splits: what to train on.
            file: where the weights are, or will be, if there is no checkpoint.
            device: where the network shall be.
            progress: show a bar of the training on standard error.

        Raises:
            CompressionError: there is a file of weights, but it cannot be used.
        """
        start = time.perf_counter()
        model = seeded(self.setting.build, self.seed).to(device)
        weights = self.checkpoint or file
        if self.checkpoint or file.exists():
            load_checkpoint(model, weights)
        else:
            train(model, splits, self.setting.recipe, self.seed, progress)
            save_checkpoint(model, file, {"recipe": repr(self.setting.recipe), "seed": str(self.seed)})
        return model.eval(), time.perf_counter() - start


PRESETS: Mapping[str, Preset] = {
    "digits": Preset(
        name="digits",
        setting=SETTINGS["digits"],
        layers=("conv2", "conv3", "conv4"),
        published=Published("GaripovNet", "F-MNIST", same_network=False),
        fine_tuning=SETTINGS["digits"].fine_tuning,
        threads=1,  # more would wait for each other: there is too little to do for two
    ),
    "garipov-fmnist": Preset(
        name="garipov-fmnist",
        setting=SETTINGS["garipov-fmnist"],
        layers=("conv2", "conv3", "conv4", "conv5", "conv6"),
        published=Published("GaripovNet", "F-MNIST"),
        checkpoint=CHECKPOINTS / "garipovnet_fmnist.safetensors",
        ranks="paper",
        fine_tuning=SETTINGS["garipov-fmnist"].fine_tuning,
    ),
}
