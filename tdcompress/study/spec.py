"""What a study is: what it was asked, checked, and the grid that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from torch import nn

from tdcompress.decompositions import Options
from tdcompress.errors import CompressionError
from tdcompress.layers.kinds import reads_features
from tdcompress.methods import Methods, get_method, options_by_method
from tdcompress.metrics import Metric, default_metrics, get_metrics
from tdcompress.outputs import Logits
from tdcompress.study.states import can_name
from tdcompress.surgery import LayerSelector, select_layers
from tdcompress.surgery.selection import dense_layers

Ranks = Callable[[str, str, float], "int | Sequence[int] | str | None"]
FineTune = Callable[[nn.Module, int], nn.Module]


@dataclass(frozen=True, eq=False)
class Spec:
    """The arguments of a `Study`, which explains them; those who measure need nothing else of it.

    Raises:
        CompressionError: see `Study`.
    """

    model: nn.Module
    layers: LayerSelector
    methods: Methods
    ratios: Sequence[float]
    runs: int
    evaluate: Callable[[nn.Module], Mapping[str, float]]
    finetune: FineTune | Mapping[str, FineTune] | None = None
    data: Any = None
    metrics: Sequence[str] | None = None
    ranks: Ranks | str | None = None
    seed: int = 0
    version: str = ""
    calibrate: Callable[[nn.Module], nn.Module] | None = None
    logits: Logits = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise CompressionError(f"model must be an nn.Module, got a {type(self.model).__name__}.")
        self._check_numbers()
        self.grid()
        self._check_functions()
        metrics = self.chosen_metrics()
        on_data = [metric.name for metric in metrics if metric.needs_data]
        if on_data and self.data is None:
            raise CompressionError(f"{', '.join(on_data)} need inputs; pass data=, an iterable of batches.")
        rows = [name for name in self.grid() if not reads_features(self.model.get_submodule(name))]
        foreseen = [metric.name for metric in metrics if metric.foreseen]
        if rows and foreseen:
            raise CompressionError(
                f"{', '.join(foreseen)} cannot be had of {', '.join(rows)}, whose inputs are numbers of rows; leave it "
                "out, or measure output_divergence."
            )
        if self.data is not None and isinstance(self.data, Iterator):
            raise CompressionError("data can be gone through only once; pass a tensor, a list of batches or a loader.")

    def strategies(self) -> dict[str | None, FineTune]:
        """What models are fine-tuned by, by name; a single function has the name None."""
        if self.finetune is None:
            return {}
        if isinstance(self.finetune, Mapping):
            return {name: function for name, function in self.finetune.items()}  # noqa: C416, its keys may be None too
        return {None: self.finetune}

    def layer_names(self) -> list[str]:
        """The layers in full."""
        return list(self.grid())

    def grid(self) -> dict[str, list[str]]:
        """The methods that each layer is decomposed by."""
        kinds = {method: get_method(method) for method in self.options()}
        matrices = any(kind.takes_linear for kind in kinds.values())
        methods: dict[str, list[str]] = {
            name: [] for name, _ in select_layers(self.model, self.layers, linear=matrices)
        }
        matrix = {name for name, _ in dense_layers(self.model, linear=True)}
        matrix -= {name for name, _ in dense_layers(self.model, linear=False)}
        for method, kind in kinds.items():
            try:
                picked = select_layers(self.model, self.layers, linear=kind.takes_linear)
            except CompressionError as error:
                raise CompressionError(f"method {method!r} takes none of the layers: {error}") from None
            for name, module in picked:
                if name in matrix and not kind.takes_linear:
                    raise CompressionError(
                        f"layer {name!r}: method {method!r} cannot take a {type(module).__name__}; leave one of them "
                        "out, or pick the layers by a glob or a predicate, and each method gets those that it can take."
                    )
                methods[name].append(method)
        return methods

    def options(self) -> dict[str, Options]:
        """What each method is told."""
        return options_by_method(self.methods)

    def chosen_metrics(self) -> list[Metric]:
        """The metrics, in the order of the table's columns."""
        return get_metrics(default_metrics(self.data is not None) if self.metrics is None else self.metrics)

    def rank_of(self, layer: str, method: str, ratio: float) -> int | tuple[int, ...] | str | None:
        """The rank or rule of a trial; None where the ratio decides."""
        rank = self.ranks(layer, method, ratio) if callable(self.ranks) else self.ranks
        if rank is None or isinstance(rank, str | int):
            return rank
        return tuple(int(entry) for entry in rank)

    def _check_functions(self) -> None:
        strategies = self.strategies()
        if self.finetune is not None and not strategies:
            raise CompressionError("finetune names no strategy; leave it out, or give at least one.")
        for name in strategies:
            if name is not None and not can_name(name):
                raise CompressionError(f"a strategy is named by a text without brackets, found {name!r}.")
        calibrate = [] if self.calibrate is None else [self.calibrate]
        if not all(callable(given) for given in (self.evaluate, *calibrate, *strategies.values())):
            raise CompressionError(
                "evaluate and calibrate must be functions of a model, and finetune one of a model and a seed, or a "
                "dict of such by name."
            )

    def _check_numbers(self) -> None:
        if not self.options() or not len(self.ratios):
            raise CompressionError("a study needs at least one method and one ratio.")
        for ratio in self.ratios:
            if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio < 1:
                raise CompressionError(f"ratios are shares to remove, between 0 and 1; found {ratio!r}.")
        if len(set(self.ratios)) < len(self.ratios):
            raise CompressionError(f"a ratio occurs twice in {list(self.ratios)}.")
        if isinstance(self.runs, bool) or not isinstance(self.runs, Integral) or self.runs < 1:
            raise CompressionError(f"runs must be a whole number from 1, found {self.runs!r}.")
