"""`make bench`: error, time and memory beside the peers, measured in one run.

Prints each section and writes it to `docs/benchmarks/`; `--quick` takes a little of each, to see that it runs.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tensorly
import torch
from tqdm import tqdm

from tdcompress.ranks import cp_ranks, tucker_rule
from tests.benchmarks.costs import Cost, cost, plain, reach
from tests.benchmarks.forward import forward_tables
from tests.benchmarks.planning import planning_tables
from tests.benchmarks.sections import (
    LAYERS,
    RATIOS,
    RESNET18,
    Reference,
    Row,
    Shape,
    plain_als,
    real_weights,
    resnet_shapes,
)
from tests.benchmarks.size import size_tables
from tests.benchmarks.solvers import PEERS
from tests.benchmarks.variants import VARIANTS, Variant, variants

PAGES = Path(__file__).parents[2] / "docs" / "benchmarks"
BIG = (512, 512, 3, 3)


def main() -> None:
    """Run every section, print it, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a little of each; nothing is written")
    parser.add_argument("sections", nargs="*", help="which of them; all by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in arguments.sections or SECTIONS:
        text = f"{_heading()}\n\n{SECTIONS[name](arguments.quick)}\n"
        print(text, flush=True)
        if not arguments.quick:
            PAGES.mkdir(exist_ok=True)
            (PAGES / f"{name}.md").write_text(text, encoding="utf-8")


def trained(quick: bool) -> str:
    """The trained layers: every case, and the summary first."""
    layers = LAYERS[:1] if quick else LAYERS
    total = sum(len(RATIOS) * len(layers) * len(peers) for peers in PEERS.values())
    rows = list(tqdm(real_weights(layers=layers), "trained layers", total, unit="comparison"))
    return f"{summary_table(rows)}\n\n{errors_table(rows)}"


def resnet(quick: bool) -> str:
    """ResNet-18's shapes."""
    shapes = itertools.islice(resnet_shapes(), 2 if quick else None)
    return resnet_table(list(tqdm(shapes, "ResNet-18's shapes", len(RESNET18))))


def patience(quick: bool) -> str:
    """Our CP against thousands of plain sweeps."""
    starts = {"conv2": 1} if quick else {"conv2": 5, "conv3": 1, "conv4": 1, "conv5": 1, "conv6": 1}
    references = plain_als(starts, sweeps=100 if quick else 3000)
    return reference_table(list(tqdm(references, "plain ALS", len(RATIOS) * len(starts))))


def options(quick: bool) -> str:
    """What our own options buy."""
    measured = variants(LAYERS[:1] if quick else ("conv2", "conv4"))
    return variants_table(list(tqdm(measured, "options", sum(map(len, VARIANTS.values())))))


def large(quick: bool) -> str:
    """One large kernel."""
    return costs_table(headline(quick))


def grown(quick: bool) -> str:
    """Kernels of growing size."""
    return costs_table(growth((64, 128) if quick else (64, 128, 256, 512, 1024)))


def forward(quick: bool) -> str:
    """A forward pass, beside the dense layer's and tensorly-torch's."""
    return "\n\n".join("\n".join([note, "", *_table(*table)]) for note, *table in forward_tables(quick))


def planning(quick: bool) -> str:
    """A whole network's plan, and plans for speed."""
    return "\n\n".join("\n".join([note, "", *_table(*table)]) for note, *table in planning_tables(quick))


def size(quick: bool) -> str:
    """Whole models, one large layer, and how planning grows."""
    return "\n\n".join("\n".join([note, "", *_table(*table)]) for note, *table in size_tables(quick))


SECTIONS: dict[str, Callable[[bool], str]] = {
    "trained": trained,
    "resnet": resnet,
    "options": options,
    "patience": patience,
    "large": large,
    "growth": grown,
    "forward": forward,
    "planning": planning,
    "size": size,
}


def _heading() -> str:
    machine = f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    versions = f"torch {torch.__version__.partition('+')[0]}, tensorly {tensorly.__version__}"
    return f"Measured on {machine}, {versions}, in one run."


def errors_table(rows: Sequence[Row]) -> str:
    """Every trained layer and ratio: our error, and theirs."""
    lines: list[str] = []
    for method in dict.fromkeys(row.method for row in rows):
        cases: dict[tuple[str, float], list[Row]] = defaultdict(list)
        for row in rows:
            if row.method == method:
                cases[row.case, row.kept].append(row)
        peers = [row.peer for row in next(iter(cases.values()))]
        lines += ["", f"**{method}**", ""]
        cells = [
            [layer, f"{kept:.0%}"]
            + [
                f"{row.theirs.error:.4f} → {row.ours.error:.4f} ({row.theirs.seconds:.2g} s → {row.ours.seconds:.2g} s)"
                for row in case
            ]
            for (layer, kept), case in cases.items()
        ]
        lines += _table(["layer", "kept", *(f"{peer} → ours" for peer in peers)], cells)
    return "\n".join(lines)


def summary_table(rows: Sequence[Row]) -> str:
    """Geometric means over all layers and ratios."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.method, row.peer].append(row)
    cells = [
        [
            method,
            peer,
            f"{_geometric_mean(row.error_ratio for row in group):.4f}",
            f"{max(row.error_ratio for row in group):.4f}",
            f"{sum(row.theirs.seconds for row in group):.1f} s",
            f"{sum(row.ours.seconds for row in group):.1f} s",
        ]
        for (method, peer), group in groups.items()
    ]
    titles = ["method", "peer", "our error / theirs, geometric mean", "worst", "their time, all cases", "our time"]
    return "\n".join(_table(titles, cells))


def resnet_table(shapes: Sequence[Shape]) -> str:
    """Time and error on ResNet-18's kernels, and the time for all 20 of its convolutions."""
    cells = []
    for one in shapes:
        row = [" × ".join(map(str, one.shape)), str(one.count)]
        for method, ours in one.ours.items():
            theirs = one.theirs.get(method)
            beside = "" if theirs is None else f" (tensorly-torch {theirs.error:.4f}, {theirs.seconds:.2f} s)"
            row.append(f"{ours.error:.4f}, {ours.seconds:.2f} s{beside}")
        cells.append(row)
    totals = {method: sum(one.count * one.ours[method].seconds for one in shapes) for method in shapes[0].ours}
    cells.append(["all of them", str(sum(one.count for one in shapes)), *(f"{s:.1f} s" for s in totals.values())])
    note = (
        "Weights with decaying spectra, a tenth of the parameters kept, defaults, the choice of the rank included; "
        "tensorly-torch at our ranks, CP only where it ends within a minute."
    )
    return "\n".join([note, "", *_table(["kernel", "times", *totals], cells)])


def reference_table(references: Sequence[Reference]) -> str:
    """Our defaults against the best of the plain runs."""
    cells = [
        [
            one.case,
            str(one.rank),
            f"{_span(one.plain)}, {one.plain_seconds:.1f} s each",
            f"{one.ours:.5f}, {one.seconds:.2f} s",
            f"{one.ours / min(one.plain):.4f}",
            f"{one.seconds / one.plain_seconds:.3f}",
        ]
        for one in references
    ]
    error = _geometric_mean(one.ours / min(one.plain) for one in references)
    seconds = sum(one.seconds for one in references) / sum(one.plain_seconds for one in references)
    titles = ["layer", "rank", "plain ALS, 3 000 sweeps", "ours"]
    lines = _table([*titles, "our error / the best of theirs", "our time / one of theirs"], cells)
    end = f"All cases: error {error:.4f} (geometric mean), time {seconds:.3f} (of the sums). Processor time."
    return "\n".join([*lines, "", end])


def _span(errors: Sequence[float]) -> str:
    low, high = min(errors), max(errors)
    return f"{low:.5f}" if len(errors) == 1 else f"{low:.5f} .. {high:.5f} ({len(errors)} starts)"


def variants_table(measured: Sequence[Variant]) -> str:
    """Errors relative to the defaults' and the time of all cases."""
    cells = [
        [one.method, f"`{one.options}`", f"{one.error:.4f}", f"{one.worst:.4f}", f"{one.seconds:.1f} s"]
        for one in measured
    ]
    titles = ["method", "options", "error / the defaults', geometric mean", "worst", "processor time, all cases"]
    return "\n".join(_table(titles, cells))


def headline(quick: bool) -> list[Cost]:
    """A 512 × 512 × 3 × 3 kernel: the peers where they end within minutes, ours beside them."""
    if quick:
        return [cost("tucker, ours", "tucker", "ours", BIG, (115, 115))]
    return list(tqdm(_headline(), "512 × 512 × 3 × 3", total=12))


def _headline() -> Iterator[Cost]:
    yield (peer := cost("cp, tensorly-torch (100 sweeps)", "cp", "tensorly-torch", BIG, (229,)))
    yield reach("cp, ours, until tensorly-torch's error, random start", BIG, 229, "random", peer.error)
    yield reach("cp, ours, until tensorly-torch's error, orthogonal start", BIG, 229, "orthogonal", peer.error)
    yield cost("cp, ours", "cp", "ours", BIG, (229,))
    yield (patient := plain("cp, plain sweeps of ours (100, as tensorly-torch's, from a random start)", BIG, 1145, 100))
    yield reach("cp, ours, until that error, random start", BIG, 1145, "random", patient.error)
    yield reach("cp, ours, until that error, orthogonal start", BIG, 1145, "orthogonal", patient.error)
    yield cost("cp, ours", "cp", "ours", BIG, (1145,))
    yield cost("tucker, tensorly-torch", "tucker", "tensorly-torch", BIG, (115, 115))
    yield cost("tucker, ours", "tucker", "ours", BIG, (115, 115))
    yield cost("tt, tensorly-torch", "tt", "tensorly-torch", BIG, (425, 5, 15))
    yield cost("tt, ours", "tt", "ours", BIG, (125, 140, 128))


def growth(sizes: Sequence[int]) -> list[Cost]:
    """Square kernels at a tenth of their parameters."""
    costs = []
    for channels in tqdm(sizes, "growth"):
        shape = (channels, channels, 3, 3)
        (rank,) = cp_ranks(shape, channels * channels * 9 // 10)
        costs.append(cost(f"cp, ours, {channels} channels", "cp", "ours", shape, rank))
        rank = tucker_rule(shape, 0.9)
        costs.append(cost(f"tucker, ours, {channels} channels", "tucker", "ours", shape, rank))
    return costs


def costs_table(costs: Sequence[Cost]) -> str:
    """Error, time and peak memory of decompositions in processes of their own."""
    cells = [
        [
            cost.name,
            str(cost.rank).strip("(,)"),
            f"{cost.error:.4f}",
            f"{cost.seconds:.2f} s",
            f"{cost.megabytes:.0f} MB",
        ]
        for cost in costs
    ]
    titles = ["what", "rank", "relative error", "time", "peak memory over what was held before"]
    note = "Kernels whose channel spectra fall as 1/√k; each in a process of its own."
    return "\n".join([note, "", *_table(titles, cells)])


def _table(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    rows = [titles, ["---"] * len(titles), *cells]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(list(values))


if __name__ == "__main__":
    main()
