"""What a study is: which network, layers, methods, compression levels, repetitions and fine-tuning."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tdcompress as td
from examples.paper.models import seeded
from examples.paper.recipes import Recipe, multiplies_bfloat16
from examples.paper.reference import Published
from examples.paper.strategies import STRATEGIES, Tuning
from examples.paper.train import SETTINGS, Setting, kept_beside, load_checkpoint, save_checkpoint
from examples.paper.training import train
from examples.paper.work import PARTS, Calibration, Evaluation, FineTuning, Source
from tdcompress.errors import CompressionError
from tdcompress.methods import get_method
from tdcompress.metrics import default_metrics
from tdcompress.study import Study
from tdcompress.study.identity import data_digest
from tdcompress.surgery import select_layers

RANKS = ("ours", "paper")

# Beside the paper's six, which are the default.
ON_OUTPUTS = ("predicted_loss", "output_divergence")


@dataclass(frozen=True)
class Preset:
    """A study; `dataclasses.replace` makes another of it.

    Attributes:
        name: what it is called on the command line.
        setting: the name of its network and data, in `SETTINGS`.
        layers: names or globs of the layers that are decomposed, one at a time.
        published: which of the paper's results stand beside this study's; None for none.
        training: how the network is trained, where there is no checkpoint.
        checkpoint: the trained weights; None to train when the study starts.
        methods: registered names.
        ratios: shares of a layer's parameters to remove.
        runs: repetitions, each with its own seed.
        ranks: "ours", what tdcompress chooses for a ratio, or "paper", what the paper printed.
        solver: None for tdcompress's own, "tensorly" for the paper's.
        fine_tuning: what follows each decomposition; None for nothing.
        calibrated: on how many random training images, without their labels, every compressed network is
            calibrated, to be measured after that, too; None to leave it out.
        images: how many random training images feature errors are means over; None for all.
        evaluated: how many random images of the validation and of the test part are used; None for all.
        validated: evaluate every compressed network on the validation part, too, not on the test part alone.
        autocast: evaluate in bfloat16; for networks whose evaluation takes most of the time.
        seed: everything random depends on it.
        threads: of PyTorch on the CPU; None for as many as it takes by itself.
        strategies: of `STRATEGIES`: ways to fine-tune that are measured side by side, each with the epochs and images
            of `fine_tuning`, and with how well the factors are conditioned; empty for `fine_tuning` as it is.
        random_starts: CP begins at one random point a run, as in the paper; without, where tdcompress begins, so that
            all runs are the same one.
        short: for a shortened study, what was shortened; it stands above its results.

    Raises:
        CompressionError: an unknown method, no layers, or a number out of its range.
    """

    name: str
    setting: str
    layers: tuple[str, ...]
    published: Published | None
    training: Recipe
    checkpoint: Path | None = None
    methods: tuple[str, ...] = ("cp", "tucker", "tt")
    ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    runs: int = 5
    ranks: str = "ours"
    solver: str | None = None
    fine_tuning: Recipe | None = None
    calibrated: int | None = None
    images: int | None = 1000
    evaluated: int | None = None
    validated: bool = True
    autocast: bool = False
    seed: int = 0
    threads: int | None = None
    random_starts: bool = True
    strategies: tuple[str, ...] = ()
    short: str = ""

    def __post_init__(self) -> None:
        for method in self.methods:
            get_method(method)
        for name in ("calibrated", "images", "evaluated"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CompressionError(f"{name} must be at least 1, found {value}")
        for name in self.strategies:
            if name not in STRATEGIES:
                raise CompressionError(f"unknown strategy {name!r}; choose among {', '.join(STRATEGIES)}")
        if self.strategies and self.fine_tuning is None:
            raise CompressionError(f"{self.name} is not fine-tuned, so there is no strategy to choose")
        if self.ranks not in RANKS:
            raise CompressionError(f"unknown ranks {self.ranks!r}; choose one of {', '.join(RANKS)}")
        if self.ranks == "paper" and self.published is None:
            raise CompressionError(f"the paper printed no ranks for {self.name}; leave ranks='paper' out")

    @property
    def parts(self) -> Setting:
        """The network, its data, and how both are used by default."""
        return SETTINGS[self.setting]

    def on(self, device: str | torch.device) -> Preset:
        """The same study for a device: in float32 where that is slow in bfloat16."""
        if multiplies_bfloat16(device):
            return self
        return replace(
            self,
            training=self.training.on(device),
            fine_tuning=None if self.fine_tuning is None else self.fine_tuning.on(device),
            autocast=False,
            short=self.short.replace("in bfloat16", "in float32"),
        )

    def choices(self) -> dict[str, Any]:
        """What the results depend on, as JSON has it."""
        names = ["name", "setting", "layers", "methods", "ratios", "runs", "ranks", "solver"]
        names += ["calibrated", "images", "evaluated", "validated", "random_starts"]
        recipe = None if self.fine_tuning is None else asdict(self.fine_tuning)
        chosen = {**{name: getattr(self, name) for name in names}, "seed": self.seed, "fine_tuning": recipe}
        if self.strategies:
            chosen["strategies"] = self.strategies
        if self.autocast:
            chosen["autocast"] = True
        return json.loads(json.dumps(chosen | {"short": self.short}))

    def solver_of(self, method: str) -> td.CPOptions | str | None:
        """What a method is solved with; see `random_starts`."""
        if method != "cp" or self.solver is not None:
            return self.solver
        if self.random_starts:
            return td.CPOptions(starts=("random",), spatial="separable")
        return td.CPOptions(starts=("orthogonal",), spatial="separable")

    def layer_names(self) -> tuple[str, ...]:
        """The layers in full, in the network's order: globs are looked up in it.

        Raises:
            CompressionError: the network has no such layer.
        """
        model = seeded(self.parts.build, self.seed)
        matrices = any(get_method(method).takes_linear for method in self.methods)
        chosen = {name for name, _ in select_layers(model, self.layers, linear=matrices)}
        return tuple(name for name, _ in model.named_modules() if name in chosen)

    def rank_of(self, model: nn.Module, layer: str, method: str, ratio: float) -> tuple[int, ...] | None:
        """The rank that the paper printed, cut to what the kernel can have; None where ours are asked for.

        The cut is for ResNet-18's `layer3.0.downsample.0`: its printed tensor-train ranks belong to no 1×1 kernel,
        and ours have no cores for spatial sizes of 1.
        """
        if self.ranks == "ours" or self.published is None:
            return None
        spec = td.ConvSpec.of(model.get_submodule(layer))
        modes = spec.modes(tuple((axis,) for axis in spec.kernel_axes))
        return get_method(method).nearest_feasible(modes, self.published.rank(layer, method, ratio))

    def study(self, model: nn.Module, source: Source) -> Study:
        """The study, ready to run.

        Args:
            model: the trained network, in evaluation mode, on the device of the data.
            source: the data.

        Raises:
            CompressionError: a layer, rank or number that cannot be.
        """
        splits, tuned = source.splits(), self._tuned(model, source)
        recipe = None if self.strategies else self.fine_tuning  # strategies know themselves what they depend on
        parts = [vars(part) for part in (splits.train, splits.validation, splits.test)]
        depends: list[Any] = [data_digest(parts), None if recipe is None else asdict(recipe)]
        calibrate = None
        if self.calibrated is not None:
            calibrate = Calibration(model, source, self.calibrated, self.seed)
            depends.append(self.calibrated)
        if self.strategies:
            depends.append("conditioning")
        if not self.validated:  # only then, so that the trials of stores from before are still found
            depends.append("test")
        if self.autocast:
            depends.append("bfloat16")
        return Study(
            model,
            self.layer_names(),
            {method: self.solver_of(method) for method in self.methods},
            self.ratios,
            self.runs,
            Evaluation(
                model,
                source,
                PARTS if self.validated else ("test",),
                conditioned=bool(self.strategies),
                autocast=self.autocast,
            ),
            tuned,
            source.feature_images(self.images, self.seed),
            metrics=[*default_metrics(with_data=True), *ON_OUTPUTS],
            ranks=partial(self.rank_of, model),
            seed=self.seed,
            version=json.dumps(depends),
            calibrate=calibrate,
            logits=True,  # the classes are the last axis, of images and of texts
        )

    def _tuned(self, model: nn.Module, source: Source) -> FineTuning | dict[str, Tuning] | None:
        if self.fine_tuning is None:
            return None
        if not self.strategies:
            return FineTuning(self.fine_tuning, source)
        return {name: Tuning(STRATEGIES[name](self.fine_tuning), source, model) for name in self.strategies}

    def trained(self, source: Source, file: Path, progress: bool = True) -> tuple[nn.Module, float]:
        """The trained network in evaluation mode, and the seconds that it took.

        Without a checkpoint the network is trained and kept in `file`, so that the same study goes on with the
        same weights. A training that was stopped goes on.

        Args:
            source: what to train on, and where.
            file: where the weights are, or will be, if there is no checkpoint.
            progress: show a bar of the training on standard error.

        Raises:
            CompressionError: there is a file of weights, but it cannot be used.
        """
        start = time.perf_counter()
        model = seeded(self.parts.build, self.seed).to(source.device)
        if self.checkpoint or file.exists():
            load_checkpoint(model, self.checkpoint or file)
        else:
            kept = kept_beside(file)
            train(model, source.splits(), self.training, self.seed, progress, kept)
            save_checkpoint(model, file, {"recipe": repr(self.training), "seed": str(self.seed)})
            kept.unlink()
        return model.eval(), time.perf_counter() - start
