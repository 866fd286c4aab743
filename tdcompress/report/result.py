"""What a compressed model costs, as data, and how it is written as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tdcompress.deferred import DataFrame
from tdcompress.report.table import aligned, markdown, short_count
from tdcompress.surgery.left import left_lines
from tdcompress.surgery.selection import listed

_FORMS: dict[str, Callable[[float], str]] = {
    "parameters": short_count,
    "multiply-adds": short_count,
    "milliseconds": "{:.3g}".format,
}
_MUCH = 0.1  # of the model's parameters are worth a remark where no method reaches them
_FEW = 3  # names in it


@dataclass(frozen=True)
class Cost:
    """What something costs dense and as it is.

    Attributes:
        parameters: weights and biases, (before, after).
        multiply_adds: of one forward on the example inputs, (before, after); None without them.
        milliseconds: median time of one forward on them, (before, after); None without them, or if the forward never
            calls the layer.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int] | None = None
    milliseconds: tuple[float, float] | None = None


@dataclass(frozen=True)
class LayerReport:
    """One factorized layer.

    Attributes:
        layer: its name; the first one if it has several.
        method: its method.
        rank: its rank, as the method writes it.
        cost: what it costs; multiply-adds and time are of all its calls in one forward.
        ratio_asked: the share of the weight's parameters to remove that was asked for; None if it was a rank.
        ratio: the share that was removed.
        relative_error: of the weight, when it was decomposed; None for a layer with fresh weights.
        verdict: what the solver says: sweeps, and whether they converged.
        errors: by the metrics' names, if they were given.
    """

    layer: str
    method: str
    rank: int | tuple[int, ...]
    cost: Cost
    ratio_asked: float | None
    ratio: float
    relative_error: float | None
    verdict: str
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a compressed model costs; print it.

    Attributes:
        layers: one entry a factorized layer, in the model's order.
        total: the whole model.
        left: the layers that `decompose` was asked for and left dense, each with the reason.
        others: the modules of no known kind that hold matrices or larger tensors themselves, as `nn.LSTM` and a
            mixture's experts do: name, class and number of elements. No method reaches those.
    """

    layers: tuple[LayerReport, ...]
    total: Cost
    left: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str, int], ...] = ()

    @property
    def slower(self) -> tuple[str, ...]:
        """A sentence for every layer that takes longer than the dense one, and for the model if it does."""
        costs = {f"layer {entry.layer!r}": entry.cost for entry in self.layers}
        if self.layers:
            costs["the model"] = self.total
        times = {name: cost.milliseconds for name, cost in costs.items() if cost.milliseconds is not None}
        return tuple(
            f"{name} became slower: {before:.3g} ms dense, {after:.3g} ms now; restore() it, or remove more."
            for name, (before, after) in times.items()
            if after > before
        )

    def to_pandas(self) -> DataFrame:
        """One row a layer, one column a number; `before` and `after` are columns of their own."""
        import pandas

        columns = ["layer", "method", "rank", "ratio_asked", "ratio", "relative_error", "verdict"]
        columns += self._metrics
        columns += [f"{kind}_{when}" for kind in asdict(self.total) for when in ("before", "after")]
        return pandas.DataFrame([_flat(entry) for entry in self.layers], columns=columns)

    def to_markdown(self) -> str:
        """The table as Markdown, and below it what was left dense and the sentences of `slower`."""
        return markdown(self._cells(), self._remarks())

    def __str__(self) -> str:
        return aligned(self._cells(), self._remarks())

    def _remarks(self) -> list[str]:
        return [*left_lines(dict(self.left)), *self._beyond_reach(), *self.slower]

    def _beyond_reach(self) -> list[str]:
        by_kind: dict[str, list[tuple[str, int]]] = {}
        for name, kind, count in self.others:
            by_kind.setdefault(kind, []).append((name, count))
        after, lines = self.total.parameters[1], []
        for kind, held in by_kind.items():
            if (count := sum(count for _, count in held)) >= _MUCH * after:
                of_all = f"{short_count(count)} of the model's {short_count(after)} parameters"
                names = listed([name for name, _ in held], at_most=_FEW)
                lines.append(f"out of reach: {names}: {of_all}; {kind} is no layer that is known.")
        return lines

    @property
    def _metrics(self) -> list[str]:
        return list(dict.fromkeys(name for entry in self.layers for name in entry.errors))

    def _cells(self) -> list[list[str]]:
        metrics = self._metrics
        header = ["layer", "method", "rank", "ratio asked", "reached", "error", "solver"]
        header += [name.replace("_", " ") for name in metrics]
        names = list(_FORMS) if self.total.milliseconds is not None else ["parameters"]
        rows = [
            [*_words(entry), *(f"{entry.errors[name]:.3g}" for name in metrics), *_numbers(entry.cost, names)]
            for entry in self.layers
        ]
        title = "the model" if self.layers else "the model (no layer is factorized)"
        total = [title, *[""] * (len(header) - 1), *_numbers(self.total, names)]
        return [header + names, *rows, total]


def _flat(entry: LayerReport) -> dict[str, Any]:
    row = asdict(entry)
    row |= row.pop("errors")
    for kind, pair in row.pop("cost").items():
        row[f"{kind}_before"], row[f"{kind}_after"] = (None, None) if pair is None else pair
    return row


def _words(entry: LayerReport) -> list[str]:
    asked = "" if entry.ratio_asked is None else f"{entry.ratio_asked:.3f}"
    error = "" if entry.relative_error is None else f"{entry.relative_error:.4f}"
    return [entry.layer, entry.method, str(entry.rank), asked, f"{entry.ratio:.3f}", error, entry.verdict]


def _numbers(cost: Cost, names: Sequence[str]) -> list[str]:
    pairs = {"parameters": cost.parameters, "multiply-adds": cost.multiply_adds, "milliseconds": cost.milliseconds}
    return ["" if (pair := pairs[name]) is None else " → ".join(map(_FORMS[name], pair)) for name in names]
