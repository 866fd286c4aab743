"""A plan: what every layer of a model shall become, to be read, edited, kept, drawn and carried out."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from tdcompress.decompositions import Options
from tdcompress.deferred import Figure
from tdcompress.errors import CompressionError, naming, unknown
from tdcompress.layers import ConvSpec, FactorizedConv, FisherFactors, InputMoments
from tdcompress.layers.kinds import kind_of
from tdcompress.layers.request import Request
from tdcompress.methods import get_method
from tdcompress.planning.figure import draw
from tdcompress.planning.layer import LayerPlan
from tdcompress.planning.options import DENSE
from tdcompress.planning.typed import typed
from tdcompress.progress import Progress
from tdcompress.report.table import aligned, short_count
from tdcompress.surgery.left import Refusals, left_lines
from tdcompress.surgery.plain import Policy, plain
from tdcompress.surgery.replacement import Problem, Replacement, replaced
from tdcompress.surgery.ties import tied_groups

FORMAT_VERSION = 1
UNITS = {"parameters": "parameters", "macs": "multiply-adds", "latency": "ms"}


@dataclass(frozen=True)
class Plan:
    """What every layer of a model shall become; print it. `plan` makes one.

    Attributes:
        layers: one entry a layer, in the model's order.
        objective: what the budget is of: `"parameters"`, `"macs"` or `"latency"`.
        metric: the name of the error.
        budget: the most that the layers may cost together.
        seed: what random starts are drawn from.
        left: the layers that are not planned for, and why.
        method_options: what methods are told that are not at their defaults, by name.
        policy: what may happen to layers that are more than plain ones.
    """

    layers: tuple[LayerPlan, ...]
    objective: str
    metric: str
    budget: float
    seed: int = 0
    left: tuple[tuple[str, str], ...] = ()
    method_options: tuple[tuple[str, Options], ...] = ()
    policy: Policy = field(default_factory=Policy)

    def __getitem__(self, layer: str) -> LayerPlan:
        """The entry of a layer, by its name."""
        for entry in self.layers:
            if entry.layer == layer:
                return entry
        raise unknown("layer", layer, [entry.layer for entry in self.layers])

    @property
    def cost(self) -> tuple[float, float]:
        """What the layers cost together, (dense, as planned), in the objective's unit."""
        return sum(entry.dense.cost for entry in self.layers), sum(entry.choice.cost for entry in self.layers)

    @property
    def ratio(self) -> float:
        """The share of the cost that the plan removes."""
        before, after = self.cost
        return 1 - after / before

    def edit(self, layer: str, method: str, ratio: float | None = None) -> Plan:
        """A plan with another choice for one layer, from its curve.

        Args:
            layer: its name.
            method: a method that was planned with, or `"dense"`.
            ratio: the share of the layer's parameters to remove, at least; the option that loses least is taken.

        Raises:
            CompressionError: there is no such option, or the budget would be exceeded.
        """
        entry = self[layer]
        methods = {option.method for option in entry.options}
        if method not in methods:
            raise unknown("method", method, methods).at(layer)
        most = entry.spec.numel * (1 if ratio is None else 1 - ratio)
        fitting = [
            (option.loss, option.error, place)
            for place, option in enumerate(entry.options)
            if option.method == method and option.parameters <= most
        ]
        if not fitting:
            least = min(option.parameters for option in entry.options if option.method == method)
            largest = math.floor(1e4 * (1 - least / entry.spec.numel)) / 1e4
            raise CompressionError(f"{method} reaches ratio={largest} at the most, got {ratio}.").at(layer)
        edited = replace(entry, chosen=min(fitting)[-1])
        plan = replace(self, layers=tuple(edited if one is entry else one for one in self.layers))
        if plan.cost[1] > max(self.budget, self.cost[1]):
            raise CompressionError(
                f"layer {layer!r}: the layers would cost {plan.cost[1]:.6g} {UNITS[self.objective]}, the budget is "
                f"{self.budget:.6g}; make another one smaller first."
            )
        return plan

    def apply(
        self,
        model: nn.Module,
        *,
        whiten: Mapping[str, InputMoments | FisherFactors] | None = None,
        inplace: bool = False,
        executor: Executor | None = None,
        progress: Progress = None,
    ) -> nn.Module:
        """Carry the plan out: what `decompose` does, for every layer that is not left dense.

        Args:
            model: the model that was planned for, or one of the same layers.
            whiten: moments of inputs by the layers' names, as for `decompose`; layers that it lacks are not whitened.
            inplace: change `model` itself.
            executor: as for `decompose`.
            progress: as for `decompose`.

        Raises:
            CompressionError: the model is another one; the first difference is named, and it is as it was.
        """
        self.check(model)
        selected, problems, method_options = [], {}, dict(self.method_options)
        for entry in self.layers:
            choice = entry.choice
            for name in (entry.layer, *entry.tied) if choice.method != DENSE else ():
                module, kind = model.get_submodule(name), get_method(choice.method)
                with naming(name):
                    conv, moments = plain(module, self.policy), (whiten or {}).get(name)
                options = method_options.get(choice.method) or kind.options()
                request = Request(options=options, rank=choice.rank, axes=choice.axes, whiten=moments, seed=self.seed)
                problems[name] = Problem(kind, conv, request)
                selected.append((name, module))
        if not selected:
            return model if inplace else copy.deepcopy(model)
        wanted = Replacement(selected, problems, Refusals("raise"), dict(self.left))
        return replaced(model, wanted, inplace=inplace, executor=executor, progress=progress)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that was not planned for.

        Raises:
            CompressionError: it names the first layer that differs, and how.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        for entry in self.layers:
            module = modules.get(entry.layer)
            if module is None:
                raise CompressionError(f"the plan is for another model: this one has no layer {entry.layer!r}.")
            if isinstance(module, FactorizedConv) or kind_of(module) is None:
                raise CompressionError(
                    f"the plan is for another model: there layer {entry.layer!r} is dense, here it is a "
                    f"{type(module).__name__}."
                )
            here, there = asdict(ConvSpec.read(module)), asdict(entry.spec)
            for name, value in there.items():
                if here[name] != value:
                    raise CompressionError(
                        f"the plan is for another model: there layer {entry.layer!r} has {name}={value!r}, here "
                        f"{here[name]!r}."
                    )
            for other in entry.tied:
                sharing = modules.get(other)
                if sharing is None or len(tied_groups([(entry.layer, module), (other, sharing)])) > 1:
                    raise CompressionError(
                        f"the plan is for another model: there layers {entry.layer!r} and {other!r} share a weight, "
                        "here they do not."
                    )

    def __str__(self) -> str:
        unit = UNITS[self.objective]
        header = ["layer", "method", "rank", self.metric, "parameters", *([unit] if unit != "parameters" else [])]
        rows = [header]
        for entry in self.layers:
            choice, dense = entry.choice, entry.dense
            rank = "" if choice.method == DENSE else str(choice.rank[0] if len(choice.rank) == 1 else choice.rank)
            row = [entry.layer, choice.method, rank, f"{choice.error:.4f}"]
            row.append(f"{short_count(dense.parameters)} → {short_count(choice.parameters)}")
            rows.append(row + ([self._amount(dense.cost, choice.cost)] if unit != "parameters" else []))
        total = f"{self._amount(*self.cost)} {unit}, {self.ratio:.1%} removed; the budget is {self._one(self.budget)}"
        return aligned(rows, [total, *left_lines(dict(self.left))])

    def _amount(self, before: float, after: float) -> str:
        return f"{self._one(before)} → {self._one(after)}"

    def _one(self, cost: float) -> str:
        return f"{cost:.3g}" if self.objective == "latency" else short_count(cost)

    # --- on disk ----------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The whole plan, curves included, as JSON."""
        return json.dumps({"version": FORMAT_VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> Plan:
        """What `to_json` wrote.

        Raises:
            CompressionError: it is no such JSON, or of a newer version.
        """
        try:
            fields = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise CompressionError(f"this is no plan, or a damaged one: {type(error).__name__}.") from None
        version = fields.get("version") if isinstance(fields, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise CompressionError(f"the plan was written by a newer tdcompress (format {version}); upgrade it.")
        try:
            if type(version) is not int or version < 1:
                raise CompressionError("it does not say which version of the format it has.")
            return _plan_from(fields)
        except CompressionError as error:
            raise CompressionError(f"this is no plan, or a damaged one: {error}") from None

    def plot(self, path: str | None = None) -> Figure:
        """Every layer's curves of error against parameters, with what was chosen.

        Args:
            path: where to save the picture too, if anywhere.
        """
        figure = draw(self.layers, self.objective, self.metric)
        if path is not None:
            figure.savefig(path)
        return figure


def _plan_from(fields: dict[str, Any]) -> Plan:
    """The plan that `asdict` gave, back from JSON, which has lists for tuples.

    Raises:
        CompressionError: a field is missing or of another type, or they do not fit together.
    """
    given = {name: value for name, value in fields.items() if name not in ("version", "method_options")}
    plan: Plan = typed(Plan, given, "plan")
    told = typed(tuple[tuple[str, Any], ...], fields.get("method_options", []), "method_options")
    options = tuple((name, typed(get_method(name).options, one, f"method_options of {name}")) for name, one in told)
    if plan.objective not in UNITS:
        raise unknown("objective", plan.objective, UNITS)
    for entry in plan.layers:
        entry.check()
    if not plan.cost[0] > 0:
        raise CompressionError("its layers cost nothing.")
    return replace(plan, method_options=options)
