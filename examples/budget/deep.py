"""Deep networks without labels: decomposed, calibrated, distilled. `python -m examples.budget.deep resnet18-fmnist`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

import tdcompress as td
from examples.budget.__main__ import write_rows
from examples.command import run_command
from examples.paper.preset import Preset
from examples.paper.presets import PRESETS
from examples.paper.tables import MEASURES, markdown_table
from examples.paper.work import Evaluation, Source
from tdcompress.report.table import short_count

NETWORKS = ("resnet18-fmnist", "resnet50-fmnist", "gpt-text", "digits-resnet")
# The learning rate is DistillationOptions' own; passes are as many as a few minutes allow.
_PASSES = {"resnet18-fmnist": 10, "resnet50-fmnist": 5, "gpt-text": 10, "digits-resnet": 60}
_INPUTS = {"gpt-text": 128}
_AT_A_TIME = {"gpt-text": 16}


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        ratio: the share of the layers' weights that was to be removed; 0 for the dense network.
        state: what was done to it.
        performance: on the test data, in the unit of the setting's first measure.
        parameters: of the whole network.
        seconds: that the step took, without those before it.
    """

    ratio: float
    state: str
    performance: float
    parameters: int
    seconds: float


class Ladder:
    """A network, step by step: each begins with what the last one left.

    Args:
        model: the trained network, in evaluation mode.
        layers: the names of the layers that share the budget.
        inputs: unlabelled inputs of the training part.
        options: of the distillation.
        size: inputs in a batch.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], inputs: Tensor, options: td.DistillationOptions, size: int
    ) -> None:
        self.model, self.layers, self.inputs, self.options = model, list(layers), inputs, options
        self.batches = list(inputs.split(size))

    def steps(self, ratio: float) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
        """What is done, and how to do it; the first two begin with the dense network."""
        small: list[nn.Module] = []

        def compressed() -> nn.Module:
            small.append(td.compress(self.model, ratio, layers=self.layers, data=self.batches))
            return small[-1]

        def distilled() -> nn.Module:
            return td.distill(small[-1], self.inputs, self.model, options=self.options).model

        yield "SVD, one ratio for all layers", lambda: td.decompose(self.model, self.layers, "svd", ratio)
        yield "planned by the weights", lambda: td.compress(self.model, ratio, layers=self.layers)
        yield "planned with inputs, calibrated", compressed
        yield "then distilled", distilled


def measure(preset: Preset, source: Source, ladder: Ladder, ratios: Sequence[float]) -> Iterator[Row]:
    """The dense network, and every step at every ratio."""
    evaluate, column = Evaluation(ladder.model, source, ("test",)), f"test_{preset.parts.measures[0]}"

    def row(ratio: float, state: str, model: nn.Module, seconds: float) -> Row:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return Row(ratio, state, round(evaluate(model)[column], 4), parameters, round(seconds, 1))

    yield row(0.0, "dense", ladder.model, 0.0)
    for ratio in ratios:
        for state, step in ladder.steps(ratio):
            start = time.perf_counter()
            model = step()
            yield row(ratio, state, model, time.perf_counter() - start)


def as_markdown(rows: Sequence[Row], preset: Preset) -> str:
    """One line a step, a column a ratio."""
    first = preset.parts.measures[0]
    scale, unit = (100, ", in %") if first == "error" else (1, "")
    cells: dict[str, dict[float, str]] = {}
    for row in rows:
        text = f"{scale * row.performance:.2f}, {short_count(row.parameters)}, {row.seconds:.0f} s"
        cells.setdefault(row.state, {})[row.ratio] = text
    ratios = sorted({row.ratio for row in rows if row.ratio})
    dense = next(row for row in rows if not row.ratio)
    lines = [
        f"Test {MEASURES[first]}{unit}, parameters of the whole network, and the seconds of the step. "
        f"Dense: {scale * dense.performance:.2f}, {short_count(dense.parameters)}.",
        "",
        *markdown_table(
            ["", *(f"{ratio:.0%} removed" for ratio in ratios)],
            [
                [state, *(found.get(ratio, "") for ratio in ratios)]
                for state, found in cells.items()
                if state != "dense"
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`. The network is trained first where its weights are not there."""
    parser = argparse.ArgumentParser(prog="python -m examples.budget.deep", description=__doc__)
    parser.add_argument("preset", choices=NETWORKS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.75])
    parser.add_argument("--inputs", type=int, help="how many; 1000 images or 128 texts by default")
    parser.add_argument("--passes", type=int, help="of the distillation")
    parser.add_argument("--data", help="folder of the data set; its usual place by default")
    parser.add_argument("--weights", type=Path, help="results/PRESET/model.safetensors by default")
    parser.add_argument("--output", type=Path, help="results/deep/PRESET by default")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    name = preset.name
    source = Source(preset.setting, options.data)
    model, _ = preset.trained(source, options.weights or Path("results") / name / "model.safetensors")
    inputs = source.feature_images(options.inputs or _INPUTS.get(name, 1000), preset.seed)
    distillation = td.DistillationOptions(
        passes=options.passes or _PASSES[name],
        local=None,
        batch_size=_AT_A_TIME.get(name, 50),
        autocast=preset.training.autocast,
    )
    ladder = Ladder(model, preset.layer_names(), inputs, distillation, _AT_A_TIME.get(name, 100))
    folder = options.output or Path("results") / "deep" / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in measure(preset, source, ladder, options.ratios):
        print(*vars(row).values(), sep="\t", file=sys.stderr, flush=True)
        rows.append(row)
    write_rows(folder / "results.csv", Row.__dataclass_fields__, map(vars, rows))
    text = as_markdown(rows, preset)
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text, f"In {folder}: results.csv, table.md", sep="\n")


if __name__ == "__main__":
    run_command(main)
