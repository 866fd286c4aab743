"""What a plan is asked for, and what it is about: the layers as plain ones, what they are called with, what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tdcompress.batches import Data, called, evaluating, input_of, quickest, repeatable
from tdcompress.decompositions import Options
from tdcompress.decompositions.algebra import check_tensor
from tdcompress.errors import CompressionError, unknown
from tdcompress.layers import ConvSpec
from tdcompress.layers.kinds import reads_features, weight_of
from tdcompress.methods import Methods, get_method, options_by_method
from tdcompress.metrics import METRICS
from tdcompress.outputs import Logits
from tdcompress.planning.result import UNITS
from tdcompress.ranks import kept_share
from tdcompress.report.measuring import as_call, layer_calls
from tdcompress.surgery import LayerSelector, select_layers
from tdcompress.surgery.left import OnRefusal, Refusals, without
from tdcompress.surgery.plain import Policy, check_wrapper, plain
from tdcompress.surgery.ties import cut_ties, tied_groups
from tdcompress.watching import Call, run, watching

PREDICTED = "predicted_loss"
Objective = Literal["parameters", "macs", "latency"]
Metric = str | Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class PlanRequest:
    """The arguments of `plan`, which explains them.

    Raises:
        CompressionError: an unknown objective or method, or a ratio out of its range.
    """

    ratio: float
    methods: Methods | None
    layers: LayerSelector | None
    skip: LayerSelector | None
    on_refusal: OnRefusal
    policy: Policy
    objective: Objective
    metric: Metric
    example_inputs: Any
    data: Data | None
    trials: bool | None
    logits: Logits
    seed: int

    def __post_init__(self) -> None:
        kept_share(self.ratio)
        if self.trials and self.data is None:
            raise CompressionError("trials=True needs inputs; pass data=, an iterable of batches.")
        if self.objective not in UNITS:
            raise unknown("objective", self.objective, UNITS)
        _ = self.options

    @property
    def share(self) -> float:
        """The share of the cost that is kept."""
        return float(kept_share(self.ratio))

    @cached_property
    def options(self) -> dict[str, Options]:
        """What layers may become, and what each method is told."""
        return options_by_method(self.methods)

    @property
    def tries(self) -> bool:
        """Whether layers are compressed in the model to see what their errors matter."""
        if self.trials is None:
            return self.data is not None and self.metric != PREDICTED
        return self.trials

    @property
    def metric_name(self) -> str:
        """What the error is called."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "error")


@dataclass(frozen=True, eq=False)
class PlanningProblem:
    """What a plan is about, computed once from a model and a request; `problem_of` makes one.

    Attributes:
        model: the model; it is left alone.
        request: what is asked.
        convs: the layers to plan as plain ones, by name, in the model's order; the first of those
            that share a weight.
        tied: the others of them, by the name of the first.
        left: the layers that are not planned for, and why.
        inputs: batches that can be gone through more than once; None without data.
        example: what to call the model with for multiply-adds and latency; None if nobody needs it.
    """

    model: nn.Module
    request: PlanRequest
    convs: Mapping[str, Any]
    tied: Mapping[str, tuple[str, ...]]
    left: Mapping[str, str]
    inputs: Iterable[Any] | None
    example: Any

    @cached_property
    def specs(self) -> dict[str, ConvSpec]:
        """What the layers are."""
        return {name: ConvSpec.of(conv) for name, conv in self.convs.items()}

    @cached_property
    def calls(self) -> dict[str, list[Call]]:
        """What the layers are called with in one forward on the example."""
        layers = {name: self.model.get_submodule(name) for name in self.convs}
        with torch.no_grad(), evaluating(self.model):
            return layer_calls(self.model, layers, as_call(self.example))

    @property
    def is_whitened(self) -> bool:
        """Whether errors are those of features or predictions, which curves of whitened kernels have."""
        return self.request.metric in ("relative_features", PREDICTED)


def problem_of(model: nn.Module, request: PlanRequest) -> PlanningProblem:
    """What a plan of this model is about.

    Raises:
        CompressionError: see `plan`.
    """
    inputs = None if request.data is None else repeatable(request.data)
    if inputs is None and request.metric in [name for name, known in METRICS.items() if known.needs_data]:
        raise CompressionError(f"metric={request.metric!r} needs inputs; pass data=, an iterable of batches.")
    example = _example(request, inputs)
    refused = Refusals("skip" if request.layers is None else request.on_refusal)
    convs, tied, skipped = _plain_layers(model, request, refused)
    convs = _reached(model, convs, example, inputs, refused)
    if inputs is not None:
        with evaluating(model):
            inputs = quickest(inputs, model)
    return PlanningProblem(model, request, convs, tied, {**skipped, **refused.texts}, inputs, example)


def _example(request: PlanRequest, inputs: Iterable[Any] | None) -> Any:
    example = request.example_inputs
    if example is None and inputs is not None:
        batch = next(iter(inputs), None)
        example = batch if batch is None or isinstance(batch, Mapping) else input_of(batch)
    if request.objective != "parameters" and example is None:
        raise CompressionError(f"objective={request.objective!r} needs example_inputs, what to call the model with.")
    return example


def _plain_layers(
    model: nn.Module, request: PlanRequest, refused: Refusals
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], dict[str, str]]:
    """The layers to plan, as plain ones, in the model's order; which share their weight; why others are left out."""
    selected = select_layers(model, request.layers, linear=True)
    selected, skipped = without(model, selected, request.skip)
    places = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    selected.sort(key=lambda one: places[one[0]])
    kinds, convs, tied = {name: get_method(name) for name in request.options}, {}, {}
    groups = list(tied_groups(selected))
    for group in groups:
        (first, module), *others = group
        with refused.of(first):
            for name, _ in group:
                check_wrapper(model, name)
            for error in cut_ties(model, group).values():
                raise error
            if request.metric == PREDICTED and not all(reads_features(one) for _, one in group):
                raise CompressionError(
                    "its inputs are numbers of rows, which have no moments for metric='predicted_loss'; skip it, or "
                    "plan by another metric."
                )
            conv = plain(module, request.policy)
            check_tensor(weight_of(conv))
            if not any(kind.takes(ConvSpec.of(conv)) for kind in kinds.values()):
                raise CompressionError(f"none of {', '.join(kinds)} takes a {type(conv).__name__}.")
            convs[first], tied[first] = conv, tuple(name for name, _ in others)
    refused.remaining([group[0] for group in groups])
    return convs, tied, skipped


def _reached(
    model: nn.Module, convs: Mapping[str, Any], example: Any, inputs: Iterable[Any] | None, refused: Refusals
) -> dict[str, Any]:
    """The layers that a forward on the example calls, and for which data have something; the others are refused."""
    if example is None:
        return dict(convs)
    fed: dict[str, bool] = {}  # by the layers that are called; an expert of a mixture may be called for no token
    layers = {name: model.get_submodule(name) for name in convs}

    def note(name: str, call: Call) -> None:
        fed[name] = fed.get(name, False) or inputs is None or call.input.numel() > 0

    with torch.no_grad(), evaluating(model):
        with watching(layers, note, outputs=False):
            called(model, *as_call(example))
        hungry = {name: layers[name] for name, any_of_it in fed.items() if not any_of_it}
        with watching(hungry, note, outputs=False):
            for batch in inputs if inputs is not None and hungry else ():
                run(model, batch)
                if all(fed.values()):
                    break
    unseen = [name for name in convs if not fed.get(name)]
    if unseen:
        if refused.noted is None or len(unseen) == len(convs):
            raise CompressionError(f"the model's forward never reached {', '.join(map(repr, unseen))}.")
        refused.noted.update({name: CompressionError("the forward never reaches it.") for name in unseen})
    return {name: conv for name, conv in convs.items() if name not in unseen}
