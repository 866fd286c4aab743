"""calibrate(): fit a compressed model to unlabelled data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tdcompress.batches import Data, again, evaluating, forward
from tdcompress.calibration.batch_norm import estimating, is_estimated
from tdcompress.calibration.regression import Regression, fit_all, fit_last
from tdcompress.errors import CompressionError, unknown
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.kinds import weight_of
from tdcompress.layers.moments import check_finite
from tdcompress.metrics.approximation import pairs

Fit = Literal["bias", "last", "all"]
_FITS = ("bias", "last", "all")


def calibrate(
    compressed: nn.Module,
    data: Data,
    original: nn.Module | None = None,
    *,
    fit: Fit = "all",
    batch_norm: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """Fit a compressed model to inputs without labels; no gradient of the model is taken.

    With the original at hand every factorized layer, in the order of the forward, is fitted to the features that the
    original's layer has on the same data, with the inputs that the compressed model itself gives it, so that it makes
    up for what was lost before. The statistics of the BatchNorms behind the first factorized layer are moved by as much
    as what enters them differs between the two models; without the original they are estimated anew, which needs more
    data. All this is computed in evaluation mode; modes are restored, and the original is not changed. Deterministic.

    A BatchNorm that is in evaluation mode in a model in training mode counts as frozen and stays as it is, as do norms
    without running statistics.

    Args:
        compressed: a model with factorized layers, in any precision. It is left alone unless `inplace`.
        data: batches of inputs as for `approximation_errors`, which can be gone through several times: a list or a
            `DataLoader`, not a generator. What stands beside the inputs is not looked at. A thousand samples do.
        original: the model before; without it there are only the statistics of BatchNorm.
        fit: what is fitted to the original's features: `"bias"`, by the mean error alone; `"last"`, the last stage of
            every layer by least squares in closed form; `"all"`, all stages together, from there to a local optimum.
            A layer without bias leaves the mean to the BatchNorm behind it. Of transposed layers only the bias is
            fitted.
        batch_norm: whether to estimate the statistics of BatchNorm.
        inplace: change `compressed` itself, when all is computed.

    Returns:
        The calibrated model.

    Raises:
        CompressionError: nothing is factorized, the models do not belong together, the data is empty or can be read
            only once, or is not finite.

    Example:
        >>> import tdcompress as td
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
        >>> images = [torch.randn(20, 3, 8, 8)]
        >>> small = td.decompose(model, "3", method="cp", ratio=0.9)
        >>> better = calibrate(small, images, model)
        >>> before, after = (td.approximation_errors(model, m, data=images)["3"] for m in (small, better))
        >>> after["relative_features"] < before["relative_features"]
        True
    """
    if fit not in _FITS:
        raise unknown("fit", fit, _FITS)
    inputs = again(data)
    matched = {} if original is None else dict(pairs(original, compressed))
    model = copy.deepcopy(compressed)
    frozen = {name for name, module in model.named_modules() if model.training and not module.training}
    with torch.no_grad(), evaluating(model, *([] if original is None else [original])):
        steps, tail = _steps(model, inputs, frozen if batch_norm else None)
        if original is None:
            tail = [norm for step in steps for norm in step.norms] + tail
        else:
            _check_reached(matched, steps)
            behind = [*(step.norms for step in steps[1:]), tail]
            for step, norms in zip(steps, behind, strict=True):
                with estimating(model, step.norms, original):
                    # Only a BatchNorm behind it makes up for a mean that a layer without bias cannot have.
                    _fit_layer(model, original, step, matched[step.name][0], inputs, fit, centred=bool(norms))
        if tail:
            with estimating(model, tail, original):
                for batch in inputs:
                    if original is not None:
                        forward(original, batch)
                    forward(model, batch)
    if not inplace:
        return model
    compressed.load_state_dict(model.state_dict())
    return compressed


def norms_behind(model: nn.Module, inputs: Iterable[Any]) -> list[str]:
    """The names of the BatchNorms behind the first factorized layer, in the order of a forward on the first batch."""
    steps, tail = _steps(model, inputs, frozen=set())
    return [norm for step in steps for norm in step.norms] + tail


@dataclass
class _Step:
    """A factorized layer, how often a forward calls it, and the BatchNorms between the one before it and it."""

    name: str
    norms: list[str]
    calls: int = 0


def _steps(model: nn.Module, inputs: Iterable[Any], frozen: set[str] | None) -> tuple[list[_Step], list[str]]:
    """The factorized layers in the order of a forward, and the BatchNorms behind the last; `frozen` None for none."""
    steps: dict[str, _Step] = {}
    norms: list[str] = []
    met: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if isinstance(module, FactorizedConv):
                step = steps.setdefault(name, _Step(name, norms.copy()))
                if not step.calls:
                    norms.clear()
                step.calls += 1
            elif steps and name not in met:  # what is before the first factorized layer sees what it always saw
                norms.append(name)
                met.add(name)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, FactorizedConv) or (
                is_estimated(module) and frozen is not None and name not in frozen
            ):
                stack.callback(module.register_forward_pre_hook(note(name)).remove)
        for batch in inputs:
            forward(model, batch)
            break
        else:
            raise CompressionError("the data is empty; calibration needs at least one batch of inputs.")
    if not steps:
        raise CompressionError("the forward meets no factorized layer; decompose() the model first.")
    return list(steps.values()), norms


def _check_reached(names: Iterable[str], steps: Sequence[_Step]) -> None:
    unseen = set(names) - {step.name for step in steps}
    if unseen:
        raise CompressionError(f"the model's forward never reached {', '.join(map(repr, sorted(unseen)))}.")


def _fit_layer(
    model: nn.Module, original: nn.Module, step: _Step, dense: Any, inputs: Iterable[Any], fit: Fit, centred: bool
) -> None:
    """Fit one layer of the compressed model to the original's features."""
    layer = model.get_submodule(step.name)
    assert isinstance(layer, FactorizedConv)
    last = layer.stage_specs[-1]
    fit = "bias" if layer.transposed or _is_shared(model, layer) else fit
    if not layer.spec.adapter.reads_features or (fit == "bias" and layer.bias is None):
        return  # an embedding is left as it is: for numbers of rows the SVD of its weight is the best there is
    watched = layer[-1] if fit == "last" else layer
    spec = last if fit == "last" else layer.spec
    centred = centred or layer.bias is not None
    seen = _MeanError(spec) if fit == "bias" else Regression(spec, centred=centred)
    for batch in inputs:
        goals = _calls(original, dense, batch, step.calls)
        for (entered, left), (_, goal) in zip(_calls(model, watched, batch, step.calls), goals, strict=True):
            seen.update(left if fit == "bias" else entered, goal)
    try:
        if isinstance(seen, _MeanError):
            seen.settle(layer)
        elif fit == "last":
            fit_last(layer, seen)
        else:
            fit_all(layer, seen, weight_of(dense))
    except CompressionError as error:
        raise error.at(step.name) from None


def _is_shared(model: nn.Module, layer: FactorizedConv) -> bool:
    """Whether another layer has the same factors, which must not be fitted to what this one alone sees."""
    own, inside = {id(stage.weight) for stage in layer}, set(map(id, layer.modules()))
    others = (module for module in model.modules() if id(module) not in inside)
    return any(id(parameter) in own for module in others for parameter in module._parameters.values())


class _MeanError:
    """The mean of the original's features less that of the compressed layer's, by channel."""

    def __init__(self, spec: ConvSpec) -> None:
        self.axis = -1 - len(spec.kernel_size)
        self.total, self.count = torch.zeros(spec.out_channels, dtype=torch.float64), 0

    def update(self, output: Tensor, goal: Tensor) -> None:
        apart = (goal.double() - output.double()).movedim(self.axis, -1).flatten(0, -2)
        self.total = self.total.to(apart) + apart.sum(0)
        self.count += len(apart)

    def settle(self, layer: FactorizedConv) -> None:
        check_finite(self.total)
        if layer.bias is not None:
            layer.bias.add_((self.total / self.count).to(layer.bias))


class _Reached(Exception):  # noqa: N818, it is no error
    """Ends a forward when all that is needed of it has been seen."""


def _calls(model: nn.Module, layer: nn.Module, batch: Any, count: int) -> list[tuple[Tensor, Tensor]]:
    """What a layer is called with and says, in the first `count` calls of a forward; the rest is not computed."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((args[0], output))
        if len(seen) == count:
            raise _Reached

    handle = layer.register_forward_hook(hook)
    try:
        forward(model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen
