"""What can be said to the study on the command line."""

from __future__ import annotations

import argparse

from examples.paper.preset import RANKS
from examples.paper.presets import PRESETS
from examples.paper.recipes import STEPS
from examples.paper.strategies import STRATEGIES

PRECISIONS = ("float32", "bfloat16")


def parser() -> argparse.ArgumentParser:
    """The options of `python -m examples.paper`."""
    found = argparse.ArgumentParser(prog="python -m examples.paper", description="The paper's study on one command.")
    add = found.add_argument
    add("preset", nargs="?", default="digits-resnet", choices=PRESETS, help="which study; digits-resnet by default")
    add("--layers", nargs="+", metavar="NAME", help="names or globs, as in named_modules()")
    add("--subset", metavar="NAME", help="some of them, such as conv1, downsample, stride-two, first or large")
    add("--methods", nargs="+", metavar="NAME", help="registered ones, such as cp, tucker, tt and svd")
    add("--ratios", nargs="+", type=float, metavar="X", help="shares of a layer's parameters to remove")
    add("--runs", type=int, metavar="N", help="repetitions, each with its own seed")
    add("--ranks", choices=RANKS, help="the paper's printed ranks, or what tdcompress chooses for a ratio")
    add("--solver", choices=["tensorly"], help="decompose with the paper's solver instead of ours")
    tuning = found.add_mutually_exclusive_group()
    tuning.add_argument("--no-finetune", action="store_true", help="measure the compressed networks as they are")
    tuning.add_argument("--finetune-epochs", type=int, metavar="N", help="instead of the recipe's")
    add("--strategies", nargs="+", choices=[*STRATEGIES, "all"], metavar="NAME",
        help=f"ways to fine-tune, side by side: all, or some of {', '.join(STRATEGIES)}")  # fmt: skip
    add("--calibrate", type=int, nargs="?", const=1000, dest="calibrated", metavar="N",
        help="measure them after td.calibrate on N unlabelled training images, too (1000)")  # fmt: skip
    add("--step", choices=STEPS, help="how a step of fine-tuning runs; by default a CUDA graph on CUDA")
    add("--autocast", action="store_true", help="fine-tune in bfloat16 where PyTorch's autocast does")
    add("--precision", choices=PRECISIONS, help="that networks are evaluated in; the study's own by default")
    images = found.add_mutually_exclusive_group()
    images.add_argument("--images", type=int, metavar="N", help="training images for feature errors (1000)")
    images.add_argument("--all-images", action="store_true", help="all of them, as in the paper")
    add("--data", metavar="PATH", help="folder of the data set; by default its usual place")
    add("--output", metavar="FOLDER", help="for the results; results/PRESET by default")
    add("--fresh", action="store_true", help="throw away the results that are in that folder")
    add("--retry-failed", action="store_true", help="run the trials that failed again, too")
    add("--device", default="cpu", help="such as cuda")
    add("--workers", type=int, default=1, metavar="N", help="processes; they share the device. 1 by default")
    add("--threads", type=int, metavar="N", help="of PyTorch on the CPU, in each process")
    add("--seed", type=int, metavar="N", help="everything random depends on it; 0 by default")
    add("--quiet", action="store_true", help="no progress bars")
    return found
