"""Compare ways to spend a budget: `python -m examples.budget garipov-fmnist`."""

from __future__ import annotations

import argparse
import copy
import csv
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tdcompress as td
from examples.budget.figure import draw
from examples.budget.procedures import PROCEDURES, Task
from examples.command import run_command
from examples.paper.augmentation import augment, paste
from examples.paper.augmentation import draw as draw_crops
from examples.paper.data import Splits
from examples.paper.presets import PRESETS
from examples.paper.recipes import Recipe
from examples.paper.strategies import Strategy, Tuning
from examples.paper.tables import markdown_table
from examples.paper.training import evaluate
from examples.paper.work import Source
from tdcompress.report.table import short_count

RATIOS = (0.5, 0.75, 0.9, 0.95, 0.98)
_IMAGES = 1000
# Short: one epoch on the large data, a few on the small. For the large, the learning rate is the best of 3e-3, 1e-3 and
# 3e-4 for the validation images, at 90 % removed.
_DIGITS = Recipe(learning_rate=1e-3, epochs=5, optimizer="adam", batch_size=64, schedule="one-cycle")
_FINE_TUNING = {
    "garipov-fmnist": Recipe(
        learning_rate=1e-3,
        epochs=1,
        schedule="one-cycle",
        nesterov=True,
        crop_padding=2,
        flip=True,
        autocast=True,
        channels_last=True,
    ),
    "digits": _DIGITS,
    "digits-resnet": _DIGITS,
}
# Without labels, augmented as in the fine-tuning. All is for the validation images. For GaripovNet the features of the
# layers, which say more of each image than ten classes do, are worth 0.7 points at 95 %, on the digits nothing; more
# passes than 60 are worth something from 95 % on; squares of other images help in half of the batches, and in all of
# them harm from there on.
_DISTILLATION = {
    "garipov-fmnist": td.DistillationOptions(passes=100, features=PRESETS["garipov-fmnist"].layers),
    "digits": td.DistillationOptions(),
    "digits-resnet": td.DistillationOptions(),
}
_PASTED = 0.5  # the share of the batches


@dataclass(frozen=True)
class Row:
    """One compressed network.

    Attributes:
        procedure: how the budget was spent.
        ratio: the share of the layers' weights to remove.
        seed: that decided which images were taken for calibration; 0 in tables from before it was noted.
        accuracy: on the test images, in [0, 1].
        fine_tuned: the same after a short fine-tuning; empty if there was none.
        rates: of the fine-tuning, if others were tried than the recipe's own; empty in tables from before they were
            noted.
        parameters: of the whole network.
        multiply_adds: of one forward of one image.
        milliseconds: median time of a forward of 32 images, in channels last.
        dense_milliseconds: the same for the dense network, measured in turn.
        seconds: what the compression took.
    """

    procedure: str
    ratio: float
    seed: int
    accuracy: float
    fine_tuned: float | str
    rates: str
    parameters: int
    multiply_adds: int
    milliseconds: float
    dense_milliseconds: float
    seconds: float


def measure(
    task: Task,
    splits: Splits,
    procedure: str,
    ratio: float,
    finetune: Tuning | None = None,
    *,
    seed: int = 0,
    rates: str = "",
) -> Row:
    """Compress in one way, and evaluate on the test images, once more after fine-tuning; see `Row`."""
    start = time.perf_counter()
    model = PROCEDURES[procedure](task, ratio)
    seconds = time.perf_counter() - start
    # In channels last, the format in which both networks are fastest.
    costs = td.report(
        copy.deepcopy(model).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        splits.test.images[:32].contiguous(memory_format=torch.channels_last),
    ).total
    assert costs.multiply_adds is not None
    assert costs.milliseconds is not None
    accuracy = evaluate(model, splits.test.images, splits.test.labels).accuracy
    tuned: float | str = ""
    if finetune is not None:
        tuned = round(evaluate(finetune(model, 0), splits.test.images, splits.test.labels).accuracy, 4)
    return Row(
        procedure,
        ratio,
        seed,
        round(accuracy, 4),
        tuned,
        rates,
        costs.parameters[1],
        costs.multiply_adds[1] // 32,
        round(costs.milliseconds[1], 3),
        round(costs.milliseconds[0], 3),
        round(seconds, 1),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`. Rows that the table has already are not computed again."""
    options = _parser().parse_args(arguments)
    preset = replace(PRESETS[options.preset], seed=options.seed)
    folder = Path(options.output or f"results/budget/{preset.name}")
    folder.mkdir(parents=True, exist_ok=True)
    source = Source(preset.setting, options.data)
    splits = source.splits()
    model, _ = preset.trained(source, folder / "weights.safetensors")
    chosen = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(options.seed))[:_IMAGES]
    recipe = _FINE_TUNING[preset.name].on("cpu")
    distillation = replace(_DISTILLATION[preset.name], augment=_augmentation(recipe, splits), autocast=recipe.autocast)
    task = Task(model, preset.layer_names(), splits.train.images[chosen], distillation=distillation)
    dense = evaluate(model, splits.test.images, splits.test.labels).accuracy
    print(f"dense: {dense:.4f}, {sum(p.numel() for p in model.parameters())} parameters")
    table = folder / "results.csv"
    rows = read_rows(table)
    tried = Strategy(tuple(replace(recipe, learning_rate=rate) for rate in options.rates or [recipe.learning_rate]))
    finetune = None if options.no_finetune else Tuning(tried, source, model, progress=sys.stderr.isatty())
    how = {"seed": str(options.seed), "rates": " ".join(f"{rate:g}" for rate in options.rates or [])}
    for ratio in options.ratios:
        for procedure in options.procedures:
            if any((row["procedure"], float(row["ratio"])) == (procedure, ratio) for row in _alike(rows, how)):
                continue
            row = vars(measure(task, splits, procedure, ratio, finetune, seed=options.seed, rates=how["rates"]))
            print(*(f"{value}" for value in row.values()), sep="\t", flush=True)
            rows.append({name: str(value) for name, value in row.items()})
            write_rows(table, Row.__dataclass_fields__, rows)
    order = list(PROCEDURES)
    shown = sorted(_alike(rows, how), key=lambda row: order.index(row["procedure"]))
    (folder / "table.md").write_text(_markdown(shown, dense), encoding="utf-8")
    draw(shown, dense, folder / "accuracy.png")
    print(f"{table}, table.md, accuracy.png")


def _alike(rows: Iterable[dict[str, str]], how: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows of one seed and one set of rates: a table has all that were ever asked for."""
    return [row for row in rows if all(row[name] == value for name, value in how.items())]


def _augmentation(recipe: Recipe, splits: Splits) -> Callable[[Tensor], Tensor] | None:
    """The crops and flips of the fine-tuning, and CutMix in half of the batches; None if it has none.

    All is drawn from PyTorch's own generator.
    """

    def augmented(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        draws = draw_crops(len(images), generator, images.device, crop_padding=recipe.crop_padding, flip=recipe.flip)
        images = augment(images, splits.black, draws, recipe.crop_padding)
        return paste(images, generator) if torch.rand((), generator=generator) < _PASTED else images

    return augmented if recipe.crop_padding or recipe.flip else None


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a table as text, without any if there is no such file; what old tables do not note is filled in."""
    if not table.exists():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        return [{"seed": "0", "rates": "", **row} for row in csv.DictReader(file)]


def write_rows(table: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table of these columns, whose rows `read_rows` reads again as text."""
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _markdown(rows: Sequence[dict[str, Any]], dense: float) -> str:
    """Two tables, one line a procedure, one column a budget: accuracies, and what the networks cost."""

    def accuracy(row: Mapping[str, Any]) -> str:
        tuned = f" → {float(row['fine_tuned']):.4f}" if row["fine_tuned"] else ""
        return f"{float(row['accuracy']):.4f}{tuned}"

    def cost(row: Mapping[str, Any]) -> str:
        share = float(row["milliseconds"]) / float(row["dense_milliseconds"])
        counts = (short_count(int(row[name])) for name in ("parameters", "multiply_adds"))
        return ", ".join([*counts, f"{share:.2f}"])

    first = f"Test accuracy; dense {dense:.4f}. After the arrow: after the short fine-tuning."
    second = (
        "Parameters of the whole network, multiply-adds for one image, and a forward of 32 images as a share "
        "of the time that the dense network takes, both in channels last, measured in turn."
    )
    return "\n".join([first, "", *_table(rows, accuracy), "", second, "", *_table(rows, cost), ""])


def _table(rows: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
    ratios = sorted({row["ratio"] for row in rows}, key=float)
    cells = {(row["procedure"], row["ratio"]): cell(row) for row in rows}
    procedures = dict.fromkeys(row["procedure"] for row in rows)
    body = [[procedure, *(cells.get((procedure, ratio), "") for ratio in ratios)] for procedure in procedures]
    return markdown_table(["", *(f"{float(ratio):.0%} removed" for ratio in ratios)], body)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.budget", description=__doc__)
    parser.add_argument("preset", choices=_FINE_TUNING, help="the network and its data")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="shares of the weights to remove")
    parser.add_argument("--procedures", nargs="+", choices=PROCEDURES, default=list(PROCEDURES), help="which ways")
    parser.add_argument("--no-finetune", action="store_true", help="leave the fine-tuning out")
    rates = "learning rates of the fine-tuning, of which the best for the validation images counts"
    parser.add_argument("--rates", type=float, nargs="+", help=rates)
    parser.add_argument("--data", help="folder of the data set; by default its usual place")
    parser.add_argument("--output", help="folder for table and picture; by default results/budget/PRESET")
    parser.add_argument("--seed", type=int, default=0, help="decides which images are taken for calibration")
    return parser


if __name__ == "__main__":
    run_command(main)
