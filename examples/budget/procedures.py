"""Ways to spend a budget of parameters on the layers of a network, each as one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from torch import Tensor, nn

import tdcompress as td
from examples.budget.vbmf import vbmf_rank
from tdcompress.decompositions.algebra import unfold
from tdcompress.methods import planned_by_default
from tdcompress.outputs import Logits
from tdcompress.planning import Option
from tdcompress.ranks import tucker_parameters

_BISECTIONS = 40


@dataclass(frozen=True)
class Task:
    """What is to be compressed.

    Attributes:
        model: the trained network, in evaluation mode.
        layers: the names of the layers that share the budget.
        images: unlabelled training images, (N, C, H, W), or texts, (N, places).
        batch: how many of them are taken at a time.
        distillation: how a network is fitted to the original's outputs.
        logits: what these are, see `td.approximation_errors`.
    """

    model: nn.Module
    layers: Sequence[str]
    images: Tensor
    batch: int = 100
    distillation: td.DistillationOptions = field(default_factory=td.DistillationOptions)
    logits: Logits = None

    @cached_property
    def data(self) -> list[Tensor]:
        """The images in batches."""
        return list(self.images.split(self.batch))

    @cached_property
    def moments(self) -> Mapping[str, td.InputMoments]:
        """What the layers see."""
        return td.input_moments(self.model, self.data, self.layers)


def tensorly_torch(task: Task, ratio: float) -> nn.Module:
    """What users of tensorly-torch do: every layer at the same ratio, its own ranks, its own Tucker."""
    return td.decompose(task.model, list(task.layers), "tucker", ratio, rank="tensorly-torch", solver="tensorly")


def uniform_cp(task: Task, ratio: float) -> nn.Module:
    """Every layer at the same ratio by CP."""
    return td.decompose(task.model, list(task.layers), "cp", ratio)


def equal_error(task: Task, ratio: float) -> nn.Module:
    """The same relative error in every layer by Tucker, the error by bisection (ALDS and tddl choose so)."""
    plan = td.plan(task.model, ratio, methods=("tucker",), layers=list(task.layers))
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        error = (low + high) / 2
        fits = sum(option.parameters for option in _within(plan, error).values()) <= plan.budget
        low, high = (low, error) if fits else (error, high)
    model = task.model
    for layer, option in _within(plan, high).items():
        model = model if option.method == "dense" else td.decompose(model, layer, option.method, rank=option.rank)
    return model


def _within(plan: td.Plan, error: float) -> dict[str, Option]:
    """The smallest option of every layer within a relative error."""
    return {
        entry.layer: min((one for one in entry.options if one.error <= error), key=lambda one: one.parameters)
        for entry in plan.layers
    }


def vbmf(task: Task, ratio: float) -> nn.Module:
    """Tucker with ranks in proportion to those that variational Bayes finds (Kim et al. 2016), up to the budget."""
    weights = {name: task.model.get_parameter(f"{name}.weight").detach() for name in task.layers}
    found = {name: [max(1, vbmf_rank(unfold(weight, mode))) for mode in (0, 1)] for name, weight in weights.items()}
    budget = (1 - ratio) * sum(weight.numel() for weight in weights.values())

    def ranks(scale: float) -> dict[str, tuple[int, int]]:
        scaled = {}
        for name, weight in weights.items():
            out, inner = (
                max(1, min(size, round(scale * rank))) for size, rank in zip(weight.shape, found[name], strict=False)
            )
            positions = weight[0, 0].numel()
            scaled[name] = (min(out, inner * positions), min(inner, out * positions))
        return scaled

    def cost(scale: float) -> int:
        return sum(tucker_parameters(weights[name].shape, rank) for name, rank in ranks(scale).items())

    low, high = 0.0, 100.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    model = task.model
    for name, rank in ranks(low).items():
        model = td.decompose(model, name, "tucker", rank=rank)
    return model


def planned(task: Task, ratio: float) -> nn.Module:
    """td.plan on the weights alone."""
    return td.compress(task.model, ratio, layers=list(task.layers))


def planned_calibrated(task: Task, ratio: float) -> nn.Module:
    """td.plan on the weights alone, then td.calibrate."""
    return td.calibrate(planned(task, ratio), task.data, task.model)


def data_aware(task: Task, ratio: float) -> nn.Module:
    """td.compress with unlabelled data: plan by the change of the output, whitened kernels, td.calibrate."""
    return td.compress(task.model, ratio, layers=list(task.layers), data=task.data)


def distilled(task: Task, ratio: float) -> nn.Module:
    """The same with td.distill: what it holds out of the images is kept from the calibration, too."""
    return td.compress(
        task.model, ratio, layers=list(task.layers), data=task.data, fit=task.distillation, logits=task.logits
    )


def with_newer_methods(task: Task, ratio: float) -> nn.Module:
    """As data_aware, with block terms, hierarchical Tucker and the tensor ring among the candidates."""
    methods = (*planned_by_default(), "btd", "ht", "tr")
    return td.compress(task.model, ratio, methods=methods, layers=list(task.layers), data=task.data)


def foreseen(task: Task, ratio: float, trials: bool = False) -> nn.Module:
    """td.compress with unlabelled data: plan by the predicted loss, whitened kernels, td.calibrate.

    Trials show what the predicted loss of every layer is worth.
    """
    layers, data, logits = list(task.layers), task.data, task.logits
    return td.compress(
        task.model, ratio, layers=layers, data=data, metric="predicted_loss", trials=trials, logits=logits
    )


foreseen_and_tried = partial(foreseen, trials=True)


PROCEDURES: Mapping[str, Callable[[Task, float], nn.Module]] = {
    "uniform Tucker, tensorly-torch": tensorly_torch,
    "uniform CP": uniform_cp,
    "equal relative error": equal_error,
    "VBMF ranks": vbmf,
    "plan": planned,
    "plan + calibration": planned_calibrated,
    "plan + calibration + data-aware": data_aware,
    "plan + calibration + data-aware + distilled": distilled,
    "the same with btd, ht and tr, not distilled": with_newer_methods,
    "predicted loss": foreseen,
    "predicted loss + trials": foreseen_and_tried,
}
