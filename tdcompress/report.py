"""What a compressed model costs, beside what it cost dense: parameters, multiply-adds, time, as a table."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tdcompress.batches import evaluating
from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.surgery import restore
from tdcompress.surgery.left import grouped, left_dense
from tdcompress.watching import Call, watching

if TYPE_CHECKING:
    import pandas

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]  # of a forward, by position and by keyword
_WARM_UP = 3


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
    """

    layer: str
    method: str
    rank: int | tuple[int, ...]
    cost: Cost
    ratio_asked: float | None
    ratio: float
    relative_error: float | None
    verdict: str


@dataclass(frozen=True)
class Report:
    """What a compressed model costs; print it.

    Attributes:
        layers: one entry a factorized layer, in the model's order.
        total: the whole model.
        left: the layers that `decompose` was asked for and left dense, each with the reason.
    """

    layers: tuple[LayerReport, ...]
    total: Cost
    left: tuple[tuple[str, str], ...] = ()

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

    def to_pandas(self) -> pandas.DataFrame:
        """One row a layer, one column a number; `before` and `after` are columns of their own."""
        import pandas

        columns = ["layer", "method", "rank", "ratio_asked", "ratio", "relative_error", "verdict"]
        columns += [f"{kind}_{when}" for kind in asdict(self.total) for when in ("before", "after")]
        return pandas.DataFrame([_flat(entry) for entry in self.layers], columns=columns)

    def to_markdown(self) -> str:
        """The table as Markdown, and below it what was left dense and the sentences of `slower`."""
        header, *rows = self._cells()
        rule = ["---"] * len(header)
        lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
        # A blank line before each, or Markdown would make one paragraph of them.
        return "\n".join(lines + [line for remark in self._remarks() for line in ("", remark)])

    def __str__(self) -> str:
        rows = self._cells()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *self._remarks()])

    def _remarks(self) -> list[str]:
        return [f"left dense: {line}" for line in grouped(dict(self.left))] + list(self.slower)

    def _cells(self) -> list[list[str]]:
        header = ["layer", "method", "rank", "ratio asked", "reached", "error", "solver"]
        names = list(_FORMS) if self.total.milliseconds is not None else ["parameters"]
        rows = [[*_words(entry), *_numbers(entry.cost, names)] for entry in self.layers]
        title = "the model" if self.layers else "the model (no layer is factorized)"
        total = [title, *[""] * (len(header) - 1), *_numbers(self.total, names)]
        return [header + names, *rows, total]


def report(model: nn.Module, example_inputs: Any = None, *, rounds: int = 20) -> Report:
    """What a model with factorized layers costs, beside the same model with dense ones.

    Multiply-adds are counted by PyTorch's `FlopCounterMode`. Times are medians, dense and factorized in turn after a
    warm-up, in evaluation mode and on what every layer really gets from the example inputs, on as many threads as
    PyTorch has. Modes are restored and no hook is left behind.

    Args:
        model: any module, whether some of its layers are factorized or none.
        example_inputs: what to call the model with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. Without it there are neither multiply-adds nor times.
        rounds: how many times each is timed.

    Returns:
        A table to be printed, with `to_pandas()` and `to_markdown()`.

    Raises:
        CompressionError: `rounds` is no number from 1, or with example inputs: a layer cannot be made dense for the
            comparison, see `restore`.

    >>> import tdcompress as td
    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    >>> small = td.decompose(model, "2", method="cp", ratio=0.9)
    >>> print(report(small).to_markdown())
    | layer | method | rank | ratio asked | reached | error | solver | parameters |
    | --- | --- | --- | --- | --- | --- | --- | --- |
    | 2 | cp | 27 | 0.900 | 0.902 | 0... | ... sweeps | 36.9 K → 3.68 K |
    | the model | | | | | | | 38.7 K → 5.47 K |
    >>> report(small, torch.zeros(1, 3, 8, 8)).total.multiply_adds
    (652032, 155304)
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise CompressionError(f"rounds must be a whole number from 1, got {rounds!r}.")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FactorizedConv)}
    parameters = {name: _parameters(layer) for name, layer in layers.items()}
    after = sum(parameter.numel() for parameter in model.parameters())
    # Layers with shared factors were one dense weight together.
    once = {
        frozenset(id(stage.weight) for stage in layer): before - now
        for layer, (before, now) in zip(layers.values(), parameters.values(), strict=True)
    }
    total = Cost((after + sum(once.values()), after))
    costs = {name: Cost(counts) for name, counts in parameters.items()}
    if example_inputs is not None:
        total, costs = _measured(model, layers, as_call(example_inputs), total, costs, rounds)
    entries = tuple(_entry(name, layer, costs[name]) for name, layer in layers.items())
    return Report(entries, total, tuple(left_dense(model).items()))


def _entry(name: str, layer: FactorizedConv, cost: Cost) -> LayerReport:
    solution, verdict = layer.solution, ""
    if solution is not None:
        plural = "" if solution.sweeps == 1 else "s"
        reached = "converged" if solution.converged else "not converged"
        verdict = f"{reached}, {solution.sweeps} sweep{plural}" if solution.sweeps else "closed form"
    error = None if solution is None else solution.relative_error
    return LayerReport(name, layer.method, layer.rank, cost, layer.ratio_asked, layer.ratio, error, verdict)


def _parameters(layer: FactorizedConv) -> tuple[int, int]:
    bias = 0 if layer.bias is None else layer.bias.numel()
    return layer.spec.numel + bias, sum(stage.weight.numel() for stage in layer) + bias


# --- what a forward costs -------------------------------------------------------------------------------


def _measured(
    model: nn.Module,
    layers: Mapping[str, FactorizedConv],
    arguments: Arguments,
    total: Cost,
    costs: Mapping[str, Cost],
    rounds: int,
) -> tuple[Cost, dict[str, Cost]]:
    """The costs with multiply-adds and times."""
    with torch.no_grad(), evaluating(model):
        dense = restore(model, hooks="keep") if layers else model
        calls = layer_calls(model, layers, arguments)
        return (
            _with_forwards(total, dense, model, [Call(*arguments)], rounds),
            {
                name: _with_forwards(costs[name], layer.to_conv(), layer, calls[name], rounds)
                for name, layer in layers.items()
            },
        )


def _with_forwards(cost: Cost, before: nn.Module, after: nn.Module, calls: Sequence[Call], rounds: int) -> Cost:
    def forward(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            for call in calls:
                call.on(module)

        return run

    runs = forward(before), forward(after)
    first, second = map(count_multiply_adds, runs)
    if not calls:
        return Cost(cost.parameters, (0, 0))
    return Cost(cost.parameters, (first, second), median_milliseconds(*runs, rounds=rounds))


def layer_calls(model: nn.Module, layers: Mapping[str, nn.Module], arguments: Arguments) -> dict[str, list[Call]]:
    """What every layer is called with in one forward of the model, in copies; empty for one that is not called."""
    calls: dict[str, list[Call]] = defaultdict(list)

    def note(name: str, call: Call) -> None:
        calls[name].append(call.kept())

    args, kwargs = arguments
    with watching(layers, note, outputs=False):
        model(*args, **kwargs)
    return calls


def count_multiply_adds(run: Callable[[], None]) -> int:
    """The multiply-adds of whatever `run` computes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2  # it counts a multiplication and an addition as two


def median_milliseconds(before: Callable[[], None], after: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median times of both, taken in turn so that whatever slows the machine down slows both."""
    times: tuple[list[float], list[float]] = [], []
    for turn in range(_WARM_UP + rounds):
        for place in (0, 1) if turn % 2 else (1, 0):
            seconds = _seconds((before, after)[place])
            if turn >= _WARM_UP:
                times[place].append(1e3 * seconds)
    return median(times[0]), median(times[1])


def _seconds(run: Callable[[], None]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def as_call(example_inputs: Any) -> Arguments:
    """Positional and keyword arguments of a forward: from a tensor, a tuple, or a dict."""
    if isinstance(example_inputs, Mapping):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


# --- the table ------------------------------------------------------------------------------------------


def _flat(entry: LayerReport) -> dict[str, Any]:
    row = asdict(entry)
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


def short_count(number: float) -> str:
    """A count with three digits and a letter.

    >>> short_count(512), short_count(36864), short_count(2_500_000_000)
    ('512', '36.9 K', '2.5 G')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


_FORMS: dict[str, Callable[[float], str]] = {
    "parameters": short_count,
    "multiply-adds": short_count,
    "milliseconds": "{:.3g}".format,
}
