"""Block terms by the size of the blocks: errors on the trained kernels, and forward times beside CP's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

import tdcompress as td
from tdcompress.decompositions import BTDOptions, CPOptions, Options
from tests.benchmarks.forward import BATCH, RATIOS, THREADS, Forward, on_the_cpu
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
    yield times(list(on_the_cpu(quick, stacks, ROUNDS)))


def stacks(channels: int, ratio: float) -> dict[str, nn.Module]:
    """CP as it is by default, and blocks of every size, at the ranks that the ratio buys: on these the time depends."""
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
