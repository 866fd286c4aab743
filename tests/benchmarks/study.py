"""The study's engine, measured: `python -m tests.benchmarks.study memory overhead efficiency kills`.

The trained GaripovNet stands for a real study; Linux alone, because it reads /proc.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import tdcompress as td
from examples.paper.presets import PRESETS
from examples.paper.work import Source
from tdcompress.study import Study, processes
from tdcompress.study.store import Store
from tests.study.functions import finetune, slow, study

ROOT = Path(__file__).parents[2]
RANDOM = td.CPOptions(starts=("random",), max_iter=5)
BEFORE = ["decompose_seconds", "errors_seconds", "evaluate_seconds"]  # shared by the runs of a decomposition


def main() -> None:
    """Run the sections that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--drive", nargs=3, metavar=("STORE", "RUNS", "WORKERS"), help="for `kills`, which kills it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.drive:
        store, runs, workers = arguments.drive
        with processes(int(workers)) as executor:
            mortal(int(runs)).run(store, executor, progress=False)
        return
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in arguments.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {SECTIONS[name](Path(folder))}", flush=True)


def memory(folder: Path, runs: int = 2500) -> str:
    """What the driver grows by over 10 000 trials of next to no work."""
    study().run(folder / "warm.sqlite", progress=False)
    many = study(layers="3", methods={"cp": RANDOM}, ratios=(0.3, 0.4, 0.5, 0.6), runs=runs, data=None)
    before, start = _resident(), time.perf_counter()
    frame = many.run(folder / "many.sqlite", progress=False)
    seconds, grown = time.perf_counter() - start, _resident() - before
    return f"{len(frame)} trials in {seconds:.0f} s, memory {grown:.0f} MB over the start"


def overhead(folder: Path) -> str:
    """The share of a study's time that is the engine's own."""
    lines = []
    for tuned in (False, True):
        piece = _real(tuned)
        start = time.perf_counter()
        frame = piece.run(folder / f"{tuned}.sqlite", progress=False)
        wall = time.perf_counter() - start
        spent = frame.drop_duplicates(["layer", "method", "ratio", *BEFORE])[BEFORE].sum()
        tuning = frame.filter(regex="^finetune").filter(like="seconds").sum().sum()
        rest = 1 - (spent.sum() + tuning) / wall
        lines.append(
            f"{'with' if tuned else 'without'} fine-tuning {rest:.1%} of {wall:.0f} s, and decomposing "
            f"{spent['decompose_seconds'] / wall:.1%}"
        )
    return "; ".join(lines)


def efficiency(folder: Path) -> str:
    """How much faster two processes of one thread are than one."""
    taken = {}
    for workers in (1, 2):
        with processes(workers) as executor:
            study(evaluate=partial(slow, seconds=0.3)).run(folder / f"warm{workers}.sqlite", executor, progress=False)
            start = time.perf_counter()
            _real(tuned=False).run(folder / f"{workers}.sqlite", executor, progress=False)
            taken[workers] = time.perf_counter() - start
    return f"{taken[1]:.1f} s with one, {taken[2]:.1f} s with two: {taken[1] / taken[2] / 2:.2f}"


def kills(folder: Path) -> str:
    """Twenty kills."""
    return killed_and_resumed(folder, kills=20, seed=0)


def killed_and_resumed(folder: Path, kills: int, seed: int) -> str:
    """Kill drivers and workers at random moments, run again until all is there, and compare with a quiet run.

    Args:
        folder: for the stores.
        kills: how often; every other one hits a worker.
        seed: of the moments.

    Raises:
        AssertionError: a trial is lost, is there twice, failed, or differs.
    """
    runs, store, moments = 5 * kills, folder / "killed.sqlite", random.Random(seed)
    # Without the sleep, which its key does not know of.
    quiet = mortal(runs, seconds=0).run(folder / "quiet.sqlite", progress=False)
    driver: subprocess.Popen[bytes] | None = None
    hit: dict[str, int] = {"driver": 0, "worker": 0}
    while sum(hit.values()) < kills:
        if driver is None or driver.poll() is not None:
            driver = _driver(store, runs)
        if not _at_work(driver, store):
            if driver.returncode == 0:
                break  # it has ended before it could be killed
            continue  # workers died before the first trial, and it said so
        time.sleep(moments.uniform(0, 1))
        hit["worker" if sum(hit.values()) % 2 and _kill_worker(driver, moments) else _kill_driver(driver)] += 1
    if driver is not None and driver.poll() is None:
        driver.kill()
        driver.wait()
    assert _driver(store, runs).wait() == 0
    with Store(store, read_only=True) as opened:
        assert opened._connection.execute("pragma integrity_check").fetchone() == ("ok",)
        keys = [key for (key,) in opened._connection.execute("select key from results")]
    assert len(keys) == len(set(keys)) == len(quiet)
    numbers = [name for name in quiet if "seconds" not in name]
    pd.testing.assert_frame_equal(mortal(runs).frame(store)[numbers], quiet[numbers])
    return f"killed {hit['driver']} drivers and {hit['worker']} workers; all {len(quiet)} trials there once, and equal"


def mortal(runs: int, seconds: float = 0.1) -> Study:
    """A study that takes a while: 2 layers × 2 methods × 1 ratio × `runs`, fine-tuned."""
    methods = {"cp": RANDOM, "tucker": None}
    waiting = partial(slow, seconds=seconds)
    return study(methods=methods, ratios=(0.5,), runs=runs, evaluate=waiting, finetune=finetune)


def _driver(store: Path, runs: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.benchmarks.study", "--drive", str(store), str(runs), "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def _at_work(driver: subprocess.Popen[bytes], store: Path) -> bool:
    """Wait until it has begun; False if it ended first."""
    job = store.with_name(f"{store.name}-job")
    job.unlink(missing_ok=True)  # of one that was killed
    while driver.poll() is None:
        if job.exists() or _workers(driver):
            return True
        time.sleep(0.02)
    return False


def _kill_driver(driver: subprocess.Popen[bytes]) -> str:
    driver.kill()
    driver.wait()
    return "driver"


def _kill_worker(driver: subprocess.Popen[bytes], moments: random.Random) -> bool:
    workers = _workers(driver)
    if workers:
        os.kill(moments.choice(workers), signal.SIGKILL)
    return bool(workers)


def _workers(driver: subprocess.Popen[bytes]) -> list[int]:
    try:
        children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
        return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    except (FileNotFoundError, ProcessLookupError):  # gone in between
        return []


def _real(tuned: bool) -> Study:
    """A piece of the study on Fashion-MNIST."""
    preset = replace(
        PRESETS["garipov-fmnist-short"], layers=("conv3", "conv5"), methods=("tucker", "tt"), ratios=(0.5, 0.75, 0.9)
    )
    preset = replace(preset, fine_tuning=preset.fine_tuning if tuned else None, images=500, runs=1)
    source = Source(preset.setting, evaluated=5000)
    model, _ = preset.trained(source, Path(os.devnull), progress=False)
    return preset.study(model, source)


def _resident() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


SECTIONS: dict[str, Callable[[Path], str]] = {
    "memory": memory,
    "overhead": overhead,
    "efficiency": efficiency,
    "kills": kills,
}


if __name__ == "__main__":
    main()
