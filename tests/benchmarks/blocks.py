"""Block terms by the size of the blocks: errors on the trained kernels, and forward times beside CP's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn

import tdcompress as td
from tdcompress.decompositions import BTDOptions, CPOptions, Options
from tests.benchmarks.forward import BATCH, LAYERS, LAYOUTS, RATIOS, THREADS, Forward, run_of, timed, wall
from tests.benchmarks.methods import BESIDE, all_approximations, means
from tests.benchmarks.tables import Table

SIZES = (1, 2, 4, 8, 16)
ROUNDS = 11
WAYS: dict[str, tuple[str, Options | None]] = {
    BESIDE: ("cp", CPOptions(spatial="joint")),
    "cp": ("cp", None),
    **{f"`BTDOptions(sizes=({size},))`": ("btd", BTDOptions(sizes=(size,))) for size in SIZES},
    "`BTDOptions()`": ("btd", None),
    f"`BTDOptions(sizes={SIZES})`": ("btd", BTDOptions(sizes=SIZES)),
    "`BTDOptions(size_tol=0.05)`": ("btd", BTDOptions(size_tol=0.05)),
    "`BTDOptions(size_tol=0.1)`": ("btd", BTDOptions(size_tol=0.1)),
}


def blocks_tables(quick: bool) -> Iterator[Table]:
    """Errors, and times."""
    yield means(list(all_approximations(WAYS, [round(1 - ratio, 4) for ratio in RATIOS], quick)))
    yield times(list(forwards(quick)))


def forwards(quick: bool) -> Iterator[Forward]:
    """Both memory formats, as the section `forward` measures them; the time depends on the ranks alone."""
    torch.set_num_threads(THREADS)
    for (channels, size), ratio in list(itertools.product(LAYERS, RATIOS))[: 1 if quick else None]:
        models = stacks(channels, ratio)
        for layout, memory_format in LAYOUTS.items():
            x = torch.randn(BATCH, channels, size, size).to(memory_format=memory_format)
            runs = {name: run_of(model.to(memory_format=memory_format), x) for name, model in models.items()}
            yield Forward(channels, size, round(1 - ratio, 4), layout, timed(runs, wall, 3 if quick else ROUNDS))


def stacks(channels: int, ratio: float) -> dict[str, nn.Module]:
    """CP as it is by default, and blocks of every size, at the ranks that the ratio buys."""
    dense = nn.Conv2d(channels, channels, 3, padding=1)
    models: dict[str, nn.Module] = {
        "cp": td.CPConv.from_conv(dense, ratio=ratio, solver=CPOptions(max_iter=0)),
        "tucker": td.TuckerConv.from_conv(dense, ratio=ratio, solver=td.TuckerOptions(max_iter=0)),
    }
    for size in SIZES:
        options = BTDOptions(max_iter=0, sizes=(size,))
        models[f"size {size}"] = td.BTDConv.from_conv(dense, ratio=ratio, solver=options)
    return {name: model.eval() for name, model in models.items()}


def times(rows: list[Forward]) -> Table:
    """How many times faster than CP every size is."""
    names = [name for name in rows[0].rounds if name != "cp"]
    cells = [
        [row.layer, f"{row.kept:.0%}", row.setting, f"{row.median('cp'):.3g} ms"]
        + [f"{row.speedup(name, 'cp'):.2f}" for name in names]
        for row in rows
    ]
    note = (
        f"How many times faster a forward is than that of CP by default; batch {BATCH}, {THREADS} threads. Tucker is "
        "one block of the largest size."
    )
    return note, ["layer", "kept", "setting", "cp", *names], cells
