"""Compare the SVD of linear layers with decompositions of them as tensors: `python -m examples.reshaping digits`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from examples.command import run_command
from examples.paper.training import evaluate
from examples.reshaping.figure import draw
from examples.reshaping.tables import as_markdown
from examples.reshaping.trials import PRESETS, RATIOS, trials
from examples.reshaping.ways import WAYS


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`. Networks that were trained before are not trained again."""
    options = _parser().parse_args(arguments)
    preset = PRESETS[options.preset]
    folder = Path(options.output or f"results/reshaping/{options.preset}")
    folder.mkdir(parents=True, exist_ok=True)
    splits = preset.splits(options.data)
    rows, dense = [], {}
    for run in range(options.runs):
        model = preset.trained(run, splits, folder)
        dense[run] = evaluate(model, splits.test.images, splits.test.labels).error
        print(f"network {run}: test accuracy {1 - dense[run]:.4f}", flush=True)
        for trial in trials(run, model, splits, options.ratios, list(WAYS)):
            rows.append(trial.row())
            print(
                f"{trial.layer}\t{trial.method}\t{trial.ratio}\t{1 - trial.test_error:.4f}\t{trial.shape}", flush=True
            )
    frame, errors = pd.DataFrame(rows), pd.Series(dense)
    frame.to_csv(folder / "results.csv", index=False)
    (folder / "table.md").write_text(as_markdown(frame, errors), encoding="utf-8")
    draw(frame, errors, folder / "reshaping.png")
    print(f"{folder / 'results.csv'}, table.md, reshaping.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.reshaping", description=__doc__)
    parser.add_argument("preset", choices=PRESETS, help="the network and its data")
    parser.add_argument("--runs", type=int, default=3, help="networks, each trained from a seed of its own")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="shares of the weights to remove")
    parser.add_argument("--data", help="folder of the data set; by default its usual place")
    parser.add_argument("--output", help="folder for table and picture; by default results/reshaping/PRESET")
    return parser


if __name__ == "__main__":
    run_command(main)
