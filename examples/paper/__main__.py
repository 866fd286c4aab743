"""The paper's study on one command: `python -m examples.paper [preset] [options]`."""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import tdcompress
from examples.paper.figures import draw_all
from examples.paper.grid import trials
from examples.paper.presets import PRESETS, RANKS, Preset
from examples.paper.runner import run_trials, whole_performance
from examples.paper.store import WEIGHTS, Store
from examples.paper.tables import as_markdown, as_text, in_words, taus
from tdcompress.errors import CompressionError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; see `--help`.

    Returns:
        The exit status: 0, or 2 for what cannot be done, after a line that says why.
    """
    options = _parser().parse_args(arguments)
    threads = torch.get_num_threads()
    try:
        _study(options)
    except CompressionError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)
    return 0


def _study(options: argparse.Namespace) -> None:
    preset = _chosen(options)
    torch.set_num_threads(preset.threads or torch.get_num_threads())
    output = Path(options.output or Path("results") / preset.name)
    store = Store(output, preset.choices(), fresh=options.fresh)
    _check_device(options.device)
    splits = preset.setting.load(options.data).to(options.device)
    store.note(environment=_environment(options.device))
    print(_plan(preset, splits.name, output, len(store)), flush=True)
    model, seconds = preset.trained(splits, output / WEIGHTS, options.device, not options.quiet)
    start = time.perf_counter()
    baseline = whole_performance(model, splits)
    evaluation = time.perf_counter() - start
    print(f"Baseline: {1 - baseline['test_error']:.4f} test accuracy.")
    print(_estimate(preset, evaluation, len(splits.train) / (len(splits.validation) + len(splits.test))), flush=True)
    store.note(baseline=baseline)
    start = time.perf_counter()
    try:
        run_trials(preset, model, splits, store, progress=not options.quiet)
    finally:
        _add_seconds(store, network=seconds, trials=time.perf_counter() - start)
    _report(preset, store, baseline["test_error"])


def _add_seconds(store: Store, **spent: float) -> None:
    """Note how long the study took, with the calls before that were interrupted."""
    before = store.notes.get("seconds", {})
    store.note(seconds={name: round(before.get(name, 0) + seconds, 1) for name, seconds in spent.items()})


def _report(preset: Preset, store: Store, baseline: float) -> None:
    """Print the table and the sentence, and draw the figures."""
    frame = store.frame()
    rows = taus(frame, preset.published)
    words = in_words(frame, preset.published)
    print("", as_text(rows, preset.published), "", words, "", sep="\n")
    (store.folder / "tau.md").write_text(f"{as_markdown(rows, preset.published)}\n{words}\n", encoding="utf-8")
    files = draw_all(store.folder, frame, rows, preset.published, baseline)
    names = ", ".join(file.name for file in files)
    print(f"In {store.folder}: results.csv ({len(frame)} trials), tau.md, {names}.")
    spent = store.notes["seconds"]
    print(f"Seconds: {spent['network']:.0f} for the network, {spent['trials']:.0f} for the trials.")


def _chosen(options: argparse.Namespace) -> Preset:
    """The preset with what the command line changes in it."""
    preset = PRESETS[options.preset]
    names = ("layers", "methods", "ratios", "runs", "ranks", "solver", "seed", "threads")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    if options.images is not None or options.all_images:
        changes["images"] = options.images
    if options.no_finetune:
        changes["fine_tuning"] = None
    elif options.finetune_epochs is not None:
        changes["fine_tuning"] = replace(preset.fine_tuning, epochs=options.finetune_epochs)
    preset = replace(preset, **changes)
    return replace(preset, layers=preset.layer_names())


def _check_device(name: str) -> None:
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise CompressionError(f"cannot use the device {name!r}: {error}") from None


def _plan(preset: Preset, dataset: str, output: Path, done: int) -> str:
    every = list(trials(preset))
    distinct = len({trial.compression for trial in every})
    tuned = "without fine-tuning" if preset.fine_tuning is None else f"{len(every)} fine-tunings"
    ranks = {"ours": "the ranks tdcompress chooses", "paper": "the paper's ranks"}[preset.ranks]
    lines = [
        f"{preset.name} on {dataset}: {len(preset.layers)} layers × {len(preset.methods)} methods × "
        f"{len(preset.ratios)} levels × {preset.runs} runs = {len(every)} trials",
        f"at {ranks}: {distinct} distinct decompositions, {tuned}; results go to {output}",
    ]
    if done:
        lines.append(f"{done} trials are there already; going on with the others")
    return "\n".join(lines)


def _estimate(preset: Preset, evaluation: float, train_share: float) -> str:
    """A rough bound from the time that evaluating the whole network took."""
    every = list(trials(preset))
    seconds = evaluation * len({trial.compression for trial in every})
    if preset.fine_tuning is not None:  # a training step costs about three evaluations
        seconds += len(every) * evaluation * (1 + 3 * preset.fine_tuning.epochs * train_share)
    return f"Judging by one evaluation of the baseline, this takes {max(1, math.ceil(seconds / 60))} min at most."


def _environment(device: str) -> dict[str, str | int]:
    return {
        "tdcompress": tdcompress.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device,
        "threads": torch.get_num_threads(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.paper", description=__doc__)
    add = parser.add_argument
    add("preset", nargs="?", default="digits", choices=PRESETS, help="which study; digits by default")
    add("--layers", nargs="+", metavar="NAME", help="names or globs, as in named_modules()")
    add("--methods", nargs="+", metavar="NAME", help="of cp, tucker, tt")
    add("--ratios", nargs="+", type=float, metavar="X", help="shares of a layer's parameters to remove")
    add("--runs", type=int, metavar="N", help="repetitions, each with its own seed")
    add("--ranks", choices=RANKS, help="the paper's printed ranks, or what tdcompress chooses for a ratio")
    add("--solver", choices=["tensorly"], help="decompose with the paper's solver instead of ours")
    tuning = parser.add_mutually_exclusive_group()
    tuning.add_argument("--no-finetune", action="store_true", help="measure the compressed networks as they are")
    tuning.add_argument("--finetune-epochs", type=int, metavar="N", help="instead of the recipe's")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--images", type=int, metavar="N", help="training images for feature errors (1000)")
    images.add_argument("--all-images", action="store_true", help="all of them, as in the paper")
    add("--data", metavar="PATH", help="folder of the data set; by default its usual place")
    add("--output", metavar="FOLDER", help="for the results; results/PRESET by default")
    add("--fresh", action="store_true", help="throw away the results that are in that folder")
    add("--device", default="cpu", help="such as cuda")
    add("--threads", type=int, metavar="N", help="of PyTorch on the CPU")
    add("--seed", type=int, metavar="N", help="everything random depends on it; 0 by default")
    add("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
