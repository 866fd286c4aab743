"""The paper's study on one command: `python -m examples.paper [preset] [options]`."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tdcompress
from examples.paper import compared
from examples.paper.compared import only_the_first
from examples.paper.models import seeded
from examples.paper.options import parser
from examples.paper.preset import Preset
from examples.paper.presets import PRESETS
from examples.paper.rises import between_states
from examples.paper.strategies import STRATEGIES
from examples.paper.subsets import report, subset
from examples.paper.tables import (
    MEASURES,
    as_markdown,
    as_text,
    differences,
    in_words,
    printed,
    rows_of,
)
from examples.paper.train import kept_beside
from examples.paper.work import Source
from tdcompress.errors import CompressionError
from tdcompress.study import Study, Trial, export, processes
from tdcompress.study.groupings import Tau, performances_of
from tdcompress.study.plots import Reference, draw_all
from tdcompress.threads import on_threads

STORE, TABLE, SETTINGS, WEIGHTS = "study.sqlite", "results.csv", "settings.json", "model.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; see `--help`.

    Returns:
        The exit status: 0, or 2 for what cannot be done, after a line that says why.
    """
    options = parser().parse_args(arguments)
    try:
        _check_device(options.device)
        preset = _chosen(options)
        with on_threads(preset.threads):
            _study(preset, options)
    except CompressionError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _study(preset: Preset, options: argparse.Namespace) -> None:
    output = Path(options.output or Path("results") / preset.name)
    source = Source(preset.setting, options.data, options.device, preset.evaluated)
    splits = source.splits()
    output.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        _remove(output)
    model, seconds = preset.trained(source, output / WEIGHTS, not options.quiet)
    study = preset.study(model, source)
    every = study.trials()
    print(_plan(preset, every, splits.name, output), flush=True)
    print(_estimate(preset, study, every, splits, options.workers), flush=True)
    start = time.perf_counter()
    workplace = processes(options.workers, preset.threads or 1) if options.workers > 1 else nullcontext()
    try:
        with workplace as executor:
            frame = _run(study, output / STORE, executor, options)
    finally:
        _note(output, preset, options, network=seconds, trials=time.perf_counter() - start)
    _report(preset, output, frame, study)


def _run(study: Study, store: Path, executor: Any, options: argparse.Namespace) -> pd.DataFrame:
    """The table; that trials have failed is said in a line, as all that this command says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        frame = study.run(store, executor, not options.quiet, retry_failed=options.retry_failed)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    if frame.empty:
        raise CompressionError("every trial failed, so there is nothing to correlate")
    return frame


def _note(output: Path, preset: Preset, options: argparse.Namespace, **spent: float) -> None:
    """Keep the settings and how long the study took, with the calls before that were interrupted."""
    file = output / SETTINGS
    before = json.loads(file.read_text(encoding="utf-8")).get("seconds", {}) if file.exists() else {}
    seconds = {name: round(before.get(name, 0) + value, 1) for name, value in spent.items()}
    notes = {"choices": preset.choices(), "environment": _environment(options), "seconds": seconds}
    file.write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _report(preset: Preset, output: Path, frame: pd.DataFrame, study: Study) -> None:
    """Print the table and the sentence, and draw the figures."""
    export(frame, output / TABLE)
    baseline = study.baseline(output / STORE)
    every, frame = frame, only_the_first(frame)  # of several strategies; `compared` has the others
    rows = rows_of(frame)
    words = in_words(frame, rows, preset.published)
    print("", as_text(rows, preset.published), "", words, "", sep="\n")
    short = f"{preset.short}\n\n" if preset.short else ""
    _write(output / "tau.md", f"{short}{as_markdown(rows, preset.published)}\n{words}\n")
    if preset.published is not None and preset.published.same_network:
        _write(output / "difference.md", f"{short}{differences(frame, rows, preset.published)}\n")
    states = between_states(frame)
    if states:
        _write(output / "states.md", f"{short}{states}")
    main = preset.parts.measures[0]
    files = draw_all(
        output,
        frame,
        performances_of(frame, f"test_{main}"),
        reference=_reference(preset),
        baseline=baseline[f"test_{main}"],
        label=f"test {MEASURES[main]}",
        scale=100 if main == "error" else 1,
    )
    files += report(output, frame, study.model, preset.layers)
    files += compared.report(output, every, {name: value for name, value in baseline.items() if "test_" in name})
    names = ", ".join(file.name for file in files)
    print(f"In {output}: {TABLE} ({len(frame)} trials), tau.md, {names}.")
    spent = json.loads((output / SETTINGS).read_text(encoding="utf-8"))["seconds"]
    print(f"Seconds: {spent['network']:.0f} for the network, {spent['trials']:.0f} for the trials.")


def _reference(preset: Preset) -> Reference | None:
    if preset.published is None:
        return None

    def tau(row: Tau) -> float | None:
        both = printed(row, preset.published)
        return None if both is None else both[0]

    same = preset.published.same_network
    return Reference("the paper" if same else f"the paper's nearest:\n{preset.published}", tau)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _remove(output: Path) -> None:
    beside = [f"{STORE}{end}" for end in ("", "-wal", "-shm", "-driver", "-job")]
    for name in (*beside, TABLE, SETTINGS, WEIGHTS, kept_beside(Path(WEIGHTS)).name):
        (output / name).unlink(missing_ok=True)


def _chosen(options: argparse.Namespace) -> Preset:
    """The preset with what the command line changes in it."""
    preset = PRESETS[options.preset].on(options.device)
    names = ("layers", "methods", "ratios", "runs", "ranks", "solver", "calibrated", "seed", "threads", "strategies")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    if changes.get("strategies") == ("all",):
        changes["strategies"] = tuple(STRATEGIES)
    if options.images is not None or options.all_images:
        changes["images"] = options.images
    if options.precision is not None:
        changes["autocast"] = options.precision == "bfloat16"
    recipe = None if options.no_finetune else preset.fine_tuning
    if preset.fine_tuning is None and options.finetune_epochs is not None:
        raise CompressionError(f"{preset.name} has no recipe of fine-tuning; leave --finetune-epochs out")
    if recipe is not None:
        tuning = {"epochs": options.finetune_epochs, "step": options.step}
        recipe = replace(recipe, **{name: value for name, value in tuning.items() if value is not None})
        recipe = replace(recipe, autocast=recipe.autocast or options.autocast)
    preset = replace(preset, fine_tuning=recipe, **changes)
    layers = preset.layer_names()
    if options.subset is not None:
        layers = subset(seeded(preset.parts.build, preset.seed), layers, options.subset)
    return replace(preset, layers=layers)


def _check_device(name: str) -> None:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise CompressionError(f"cannot use the device {name!r}: {error}") from None


def _plan(preset: Preset, every: Sequence[Trial], dataset: str, output: Path) -> str:
    distinct = len({trial.decomposition for trial in every})
    ways = max(1, len(preset.strategies))
    tuned = "without fine-tuning" if preset.fine_tuning is None else f"{len(every)} fine-tunings"
    if preset.calibrated is not None:
        tuned = f"each calibrated on {preset.calibrated} images, {tuned}"
    if preset.autocast or PRESETS[preset.name].autocast:
        tuned += f", evaluated in {'bfloat16' if preset.autocast else 'float32'}"
    ranks = {"ours": "the ranks tdcompress chooses", "paper": "the paper's ranks"}[preset.ranks]
    lines = [
        f"{preset.name} on {dataset}: {len(preset.layers)} layers × {len(preset.methods)} methods × "
        f"{len(preset.ratios)} levels × {preset.runs} run{'s' * (preset.runs > 1)} = {len(every) // ways} trials",
        f"at {ranks}: {distinct} distinct decompositions, {tuned}; results go to {output}",
    ]
    return "\n".join([*lines, preset.short] if preset.short else lines)


def _estimate(preset: Preset, study: Study, every: Sequence[Trial], splits: Any, workers: int) -> str:
    """A rough bound from the time that evaluating the whole network takes."""
    start = time.perf_counter()
    measure = preset.parts.measures[0]
    found = study.evaluate(study.model)[f"test_{measure}"]
    evaluation = time.perf_counter() - start
    seconds = evaluation * len({trial.decomposition for trial in every})
    if preset.calibrated is not None:
        seconds *= 2
    if preset.fine_tuning is not None:  # a training step costs about three evaluations
        trained = preset.fine_tuning.samples or len(splits.train)
        share = trained / (len(splits.validation) + len(splits.test))
        seconds += len(every) * evaluation * (1 + 3 * preset.fine_tuning.epochs * share)
    minutes = max(1, math.ceil(seconds / 60 / workers))
    baseline = f"{1 - found:.4f} test accuracy" if measure == "error" else f"{found:.4f} {MEASURES[measure]}"
    return f"Baseline: {baseline}. Judging by this evaluation's time, all takes about {minutes} min."


def _environment(options: argparse.Namespace) -> dict[str, str | int]:
    return {
        "tdcompress": tdcompress.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(options.device) if "cuda" in options.device else options.device,
        "workers": options.workers,
        "threads": torch.get_num_threads() if options.workers == 1 else options.threads or 1,
    }


if __name__ == "__main__":
    sys.exit(main())
