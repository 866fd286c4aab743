"""Do trial compressions help to compare errors across layers? `python -m examples.budget.sensitivity garipov-fmnist`.

Takes the table of a study, gives each of its trials the change of the output that `td.plan` foresees for its layer
at its relative error, and asks which of the two, error or change, orders the performances better.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import tdcompress as td
from examples.command import run_command
from examples.paper.presets import PRESETS
from examples.paper.tables import MEASURES
from examples.paper.work import Source
from tdcompress.errors import CompressionError
from tdcompress.planning import DENSE
from tdcompress.study.groupings import groupings, performances_of

RATIO = 0.75  # of the plan: its trial compressions leave a quarter of a layer, and a sixteenth
_IMAGES = 1000


def weighted(table: pd.DataFrame, plan: td.Plan) -> pd.Series[float]:
    """For every trial of a study what a plan minimizes: the loss of its layer at its relative weight error."""
    found = pd.Series(np.nan, index=table.index)
    for entry in plan.layers:
        points = sorted({(option.error, option.loss) for option in entry.options if option.method != DENSE})
        errors, losses = np.log(np.maximum(points, 1e-12)).T
        trials = table["layer"] == entry.layer
        found[trials] = np.exp(np.interp(np.log(table.loc[trials, "relative_weights"]), errors, losses))
    return found


def compared(table: pd.DataFrame) -> Iterator[str]:
    """A Markdown table: τ of the plain and of the weighted error, and the paired bootstrap of the difference."""
    yield "| performance | across | plain | weighted | difference | 95 %, over trials | 95 %, over layers |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for measure, spoken in MEASURES.items():
        for state, column in performances_of(table, f"test_{measure}").items():
            for grouping in (grouping for grouping in groupings(table) if grouping.name in ("layers", "all")):
                ask = partial(td.compare, grouping.of(table), "weighted", "relative_weights", column, grouping.across)
                trials, layers = (ask(bootstrap=td.Bootstrap(unit)) for unit in ("trials", "layers"))
                cells = [f"{spoken} {state}", grouping.title, f"{trials.second:.3f}", f"{trials.first:.3f}"]
                cells.append(f"{trials.difference:+.3f}")
                cells += [f"{one.low:+.2f} .. {one.high:+.2f}" for one in (trials, layers)]
                yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m examples.budget.sensitivity", description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=PRESETS, help="the network and its data")
    parser.add_argument("--results", help="folder of its study; by default results/PRESET")
    parser.add_argument("--data", help="folder of the data set; by default its usual place")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    folder = Path(options.results or f"results/{preset.name}")
    results = folder / "results.csv"
    if not results.exists():
        raise CompressionError(f"{results} is missing; run python -m examples.paper {preset.name} first.")
    source = Source(preset.setting, options.data)
    model, _ = preset.trained(source, folder / "model.safetensors")
    data = source.feature_images(_IMAGES, preset.seed).split(100)
    table = pd.read_csv(results)
    layers = list(dict.fromkeys(table["layer"]))
    plan = td.plan(model, RATIO, methods=tuple(dict.fromkeys(table["method"])), layers=layers, data=data)
    for line in compared(table.assign(weighted=weighted(table, plan))):
        print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
