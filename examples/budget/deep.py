"""Deep networks without labels: decomposed, calibrated, distilled. `python -m examples.budget.deep resnet18-fmnist`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from torch import nn

import tdcompress as td
from examples.budget.__main__ import read_rows, write_rows
from examples.budget.procedures import Task, data_aware, distilled, foreseen, foreseen_and_tried, planned
from examples.command import run_command
from examples.paper.preset import Preset
from examples.paper.presets import PRESETS
from examples.paper.tables import MEASURES, markdown_table
from examples.paper.work import Evaluation, Source
from tdcompress.report.table import short_count

NETWORKS = ("resnet18-fmnist", "resnet50-fmnist", "gpt-text", "digits-resnet")
# Passes are as many as a few minutes allow; the learning rate was not tuned, and is one for Adam.
_PASSES = {"resnet18-fmnist": 10, "resnet50-fmnist": 5, "gpt-text": 10, "digits-resnet": 60}
_INPUTS = {"gpt-text": 128}
_AT_A_TIME = {"gpt-text": 16}
_LOGITS = {"gpt-text": -1}  # of images they are told by their shape


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        ratio: the share of the layers' weights that was to be removed; 0 for the dense network.
        state: how it was compressed.
        performance: on the test data, in the unit of the setting's first measure.
        parameters: of the whole network.
        seconds: that it took.
    """

    ratio: float
    state: str
    performance: float
    parameters: int
    seconds: float


# Each begins with the dense network.
WAYS: Mapping[str, Callable[[Task, float], nn.Module]] = {
    "SVD, one ratio for all layers": lambda task, ratio: td.decompose(task.model, list(task.layers), "svd", ratio),
    "planned by the weights": planned,
    "planned by trials, calibrated": data_aware,
    "planned by predicted loss, calibrated": foreseen,
    "planned by both, calibrated": foreseen_and_tried,
    "planned by trials, distilled": distilled,
}


def measure(preset: Preset, source: Source, task: Task, wanted: Iterable[tuple[float, str]]) -> Iterator[Row]:
    """What ways make of the network at some ratios; a ratio of 0 is the dense one."""
    evaluate = Evaluation(task.model, source, ("test",), autocast=preset.autocast)
    for ratio, state in wanted:
        start = time.perf_counter()
        model = WAYS[state](task, ratio) if ratio else task.model
        seconds = time.perf_counter() - start
        parameters = sum(parameter.numel() for parameter in model.parameters())
        performance = evaluate(model)[f"test_{preset.parts.measures[0]}"]
        yield Row(ratio, state, round(performance, 4), parameters, round(seconds, 1))


def as_markdown(rows: Sequence[Row], preset: Preset) -> str:
    """One line a way, a column a ratio."""
    first = preset.parts.measures[0]
    unit = ", in %" if first == "error" else ""

    def figures_of(row: Row) -> str:
        performance = f"{100 * row.performance:.2f}" if first == "error" else f"{row.performance:.4f}"
        return f"{performance}, {short_count(row.parameters)}"

    cells = {(row.state, row.ratio): f"{figures_of(row)}, {row.seconds:.0f} s" for row in rows}
    shown = [way for way in WAYS if any(row.state == way for row in rows)]
    ratios = sorted({row.ratio for row in rows if row.ratio})
    dense = next(row for row in rows if not row.ratio)
    lines = [
        f"Test {MEASURES[first]}{unit}, parameters of the whole network, and the seconds that it took. "
        f"Dense: {figures_of(dense)}.",
        "",
        *markdown_table(
            ["", *(f"{ratio:.0%} removed" for ratio in ratios)],
            [[way, *(cells.get((way, ratio), "") for ratio in ratios)] for way in shown],
        ),
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Mapping[str, str]) -> Row:
    numbers = (float(cells["performance"]), int(cells["parameters"]), float(cells["seconds"]))
    return Row(float(cells["ratio"]), cells["state"], *numbers)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`.

    The network is trained first where its weights are not there. Rows that the table has already are not computed
    again.
    """
    parser = argparse.ArgumentParser(prog="python -m examples.budget.deep", description=__doc__)
    parser.add_argument("preset", choices=NETWORKS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.75])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--inputs", type=int, help="how many; 1000 images or 128 texts by default")
    parser.add_argument("--passes", type=int, help="of the distillation")
    parser.add_argument("--data", help="folder of the data set; its usual place by default")
    parser.add_argument("--weights", type=Path, help="results/PRESET/model.safetensors by default")
    parser.add_argument("--output", type=Path, help="results/deep/PRESET by default")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset].on("cpu")
    name = preset.name
    source = Source(preset.setting, options.data)
    model, _ = preset.trained(source, options.weights or Path("results") / name / "model.safetensors")
    inputs = source.feature_images(options.inputs or _INPUTS.get(name, 1000), preset.seed)
    distillation = td.DistillationOptions(
        passes=options.passes or _PASSES[name],
        learning_rate=1e-2,
        batch_size=_AT_A_TIME.get(name, 50),
        autocast=preset.training.autocast,
        optimizer="adam",
    )
    task = Task(model, preset.layer_names(), inputs, _AT_A_TIME.get(name, 100), distillation, _LOGITS.get(name))
    folder = options.output or Path("results") / "deep" / name
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "results.csv"
    rows = [_row(cells) for cells in read_rows(table)]
    known = {(row.ratio, row.state) for row in rows}
    wanted = [(0.0, "dense"), *product(options.ratios, options.ways)]
    for row in measure(preset, source, task, [one for one in wanted if one not in known]):
        print(*vars(row).values(), sep="\t", file=sys.stderr, flush=True)
        rows.append(row)
        write_rows(table, Row.__dataclass_fields__, map(vars, rows))
    text = as_markdown(rows, preset)
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text, f"In {folder}: results.csv, table.md", sep="\n")


if __name__ == "__main__":
    run_command(main)
