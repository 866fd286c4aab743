"""Which learning rate does distillation want, by which optimizer? `python -m examples.budget.rates digits` shows it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import nn

import tdcompress as td
from examples.budget.blocks import trained_anew
from examples.budget.procedures import Task, data_aware, distilled
from examples.command import run_command
from examples.paper.data import Split
from examples.paper.training import evaluate
from tdcompress.calibration.distillation_options import Optimizer

NETWORKS = ("digits", "digits-resnet")


def judged(model: nn.Module, original: nn.Module, split: Split) -> str:
    """The divergence from the original in nats, and the accuracy."""
    with torch.no_grad():
        apart = td.distillation_loss(model(split.images), original(split.images), temperature=1.0)
    return f"{float(apart):.4f}, {evaluate(model, split.images, split.labels).accuracy:.4f}"


def compared(task: Task, split: Split, ratios: Sequence[float], rates: Sequence[float]) -> Iterator[str]:
    """A Markdown table: a line a ratio, a column a learning rate, the last one that which distillation takes itself.

    Args:
        task: what is compressed.
        split: what decides.
        ratios: how much is removed.
        rates: of the descent.
    """
    yield f"| removed | calibrated | {' | '.join(f'{rate:g}' for rate in rates)} | by itself |"
    yield f"| ---: | ---: | {'---: | ' * len(rates)}---: |"
    for ratio in ratios:
        ways = [replace(task, distillation=replace(task.distillation, learning_rate=rate)) for rate in (*rates, None)]
        found = [data_aware(task, ratio), *(distilled(one, ratio) for one in ways)]
        yield f"| {100 * ratio:g} % | {' | '.join(judged(model, task.model, split) for model in found)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m examples.budget.rates", description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=NETWORKS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.75, 0.9, 0.95, 0.98])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2, 3e-2])
    parser.add_argument("--passes", type=int, default=td.DistillationOptions().passes)
    parser.add_argument("--optimizer", choices=get_args(Optimizer), default=td.DistillationOptions().optimizer)
    options = parser.parse_args(arguments)
    task, validation = trained_anew(options.preset)
    distillation = td.DistillationOptions(passes=options.passes, optimizer=options.optimizer)
    task = replace(task, distillation=distillation)
    print(f"dense: {judged(task.model, task.model, validation)}", file=sys.stderr)
    for line in compared(task, validation, options.ratios, options.rates):
        print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
