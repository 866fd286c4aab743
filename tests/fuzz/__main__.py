"""`make fuzz`: give wrong files to everything that reads files, and see that each is taken or refused, and no more.

A file is refused by a `CompressionError`. Whatever else is raised is a finding, and so are code that runs, files that
are written, a model that a refused file has changed, and memory. The table says how many there were; of each kind the
first is printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.fuzz.data import DATA
from tests.fuzz.library import LIBRARY
from tests.fuzz.target import Bench, Target

TARGETS: dict[str, Target] = {**LIBRARY, **DATA}
_SHOWN = 5  # findings of a target


def main() -> int:
    """Fuzz the targets; the exit status is 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"which of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--count", type=int, default=10_000, help="files for each (10 000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - TARGETS.keys():
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    torch.set_num_threads(1)
    print("target            files  accepted  refused  findings  most memory  seconds", flush=True)
    found = 0
    for name in arguments.targets or TARGETS:
        found += _fuzz(name, range(arguments.first, arguments.first + arguments.count), arguments.seed)
    return 1 if found else 0


def _fuzz(name: str, numbers: range, seed: int) -> int:
    """Fuzz one target, print its line, and give how many files had a finding."""
    target, outcomes, grown, began = TARGETS[name], Counter[str](), 0, time.perf_counter()
    findings: dict[str, int] = {}  # the first file of each kind
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(target, Path(folder))
        for number in numbers:
            outcome = bench.outcome(*target.file(number, seed))
            grown = max(grown, outcome.grown)
            outcomes["found" if outcome.finding else "accepted" if outcome.accepted else "refused"] += 1
            if outcome.finding:
                findings.setdefault(outcome.finding[:60], number)
                if list(findings.values())[-1] == number and len(findings) <= _SHOWN:
                    print(
                        f"  {outcome.finding}\n    python -m tests.fuzz {name} --first {number} --count 1 --seed {seed}"
                    )
    counts = f"{outcomes['accepted']:9} {outcomes['refused']:8} {outcomes['found']:9}"
    seconds = time.perf_counter() - began
    print(f"{name:16} {len(numbers):6} {counts} {grown / (1 << 20):8.1f} MiB {seconds:8.0f}", flush=True)
    return outcomes["found"]


if __name__ == "__main__":
    sys.exit(main())
