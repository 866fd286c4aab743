"""`make bench`: error, time and memory beside the peers, measured in one run.

Prints each section and writes it to `docs/benchmarks/`; `--quick` takes a little of each, to see that it runs.
"""

from __future__ import annotations

import argparse
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tensorly
import torch
from tqdm import tqdm

from tdcompress.ranks import cp_ranks, tucker_rule
from tests.benchmarks.arrangements import arrangement_table, arrangements
from tests.benchmarks.blocks import blocks_tables
from tests.benchmarks.costs import Cost, cost, plain, reach
from tests.benchmarks.eager import eager_tables
from tests.benchmarks.forward import forward_tables
from tests.benchmarks.linear import linear_tables
from tests.benchmarks.methods import methods_tables
from tests.benchmarks.planning import planning_tables
from tests.benchmarks.sections import (
    LAYERS,
    RATIOS,
    RESNET18,
    plain_als,
    real_weights,
    resnet_shapes,
)
from tests.benchmarks.size import size_tables
from tests.benchmarks.solvers import PEERS
from tests.benchmarks.tables import (
    costs_table,
    errors_table,
    page,
    reference_table,
    resnet_table,
    summary_table,
    table,
    variants_table,
)
from tests.benchmarks.variants import VARIANTS, variants

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


def ways(quick: bool) -> str:
    """CP with a stage for every axis or one for all."""
    layers = LAYERS[:1] if quick else LAYERS
    cases = list(tqdm(arrangements(layers), "CP's arrangements", len(layers) * len(RATIOS)))
    return "\n".join(table(*arrangement_table(cases)))


def large(quick: bool) -> str:
    """One large kernel."""
    return costs_table(headline(quick))


def grown(quick: bool) -> str:
    """Kernels of growing size."""
    return costs_table(growth((64, 128) if quick else (64, 128, 256, 512, 1024)))


def forward(quick: bool) -> str:
    """A forward pass, beside the dense layer's and tensorly-torch's."""
    return page(forward_tables(quick))


def eager(quick: bool) -> str:
    """What running a stack otherwise than stage by stage gains."""
    return page(eager_tables(quick))


def methods(quick: bool) -> str:
    """The methods for convolutions at equal parameters."""
    return page(methods_tables(quick))


def blocks(quick: bool) -> str:
    """The size of block terms: what it does to the error, and to the time."""
    return page(blocks_tables(quick))


def linear(quick: bool) -> str:
    """The methods for linear layers."""
    return page(linear_tables(quick))


def planning(quick: bool) -> str:
    """A whole network's plan, and plans for speed."""
    return page(planning_tables(quick))


def size(quick: bool) -> str:
    """Whole models, one large layer, and how planning grows."""
    return page(size_tables(quick))


SECTIONS: dict[str, Callable[[bool], str]] = {
    "trained": trained,
    "methods": methods,
    "blocks": blocks,
    "resnet": resnet,
    "options": options,
    "arrangements": ways,
    "patience": patience,
    "large": large,
    "growth": grown,
    "forward": forward,
    "eager": eager,
    "linear": linear,
    "planning": planning,
    "size": size,
}


def _heading() -> str:
    machine = f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    versions = f"torch {torch.__version__.partition('+')[0]}, tensorly {tensorly.__version__}"
    return f"Measured on {machine}, {versions}."


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


if __name__ == "__main__":
    main()
