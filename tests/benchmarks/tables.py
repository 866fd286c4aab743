"""What the sections have measured, as tables in Markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tests.benchmarks.costs import Cost
from tests.benchmarks.sections import Reference, Row, Shape
from tests.benchmarks.variants import Variant

Table = tuple[str, list[str], list[list[str]]]  # what it shows, titles, cells


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
        lines += table(["layer", "kept", *(f"{peer} → ours" for peer in peers)], cells)
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
            f"{statistics.geometric_mean(row.error_ratio for row in group):.4f}",
            f"{max(row.error_ratio for row in group):.4f}",
            f"{sum(row.theirs.seconds for row in group):.1f} s",
            f"{sum(row.ours.seconds for row in group):.1f} s",
        ]
        for (method, peer), group in groups.items()
    ]
    titles = ["method", "peer", "our error / theirs, geometric mean", "worst", "their time, all cases", "our time"]
    return "\n".join(table(titles, cells))


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
    return "\n".join([note, "", *table(["kernel", "times", *totals], cells)])


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
    error = statistics.geometric_mean(one.ours / min(one.plain) for one in references)
    seconds = sum(one.seconds for one in references) / sum(one.plain_seconds for one in references)
    titles = ["layer", "rank", "plain ALS, 3 000 sweeps", "ours"]
    lines = table([*titles, "our error / the best of theirs", "our time / one of theirs"], cells)
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
    return "\n".join(table(titles, cells))


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
    return "\n".join([note, "", *table(titles, cells)])


def page(tables: Iterable[Table]) -> str:
    """Tables one after the other, each a sentence, titles and cells."""
    return "\n\n".join("\n".join([note, "", *table(titles, cells)]) for note, titles, cells in tables)


def table(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    rows = [titles, ["---"] * len(titles), *cells]
    return ["| " + " | ".join(row) + " |" for row in rows]
