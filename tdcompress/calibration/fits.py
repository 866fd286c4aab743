"""What one factorized layer is fitted by: which equations, what they are shown, and how they are settled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.calibration.regression import (
    Goal,
    Regression,
    fit_all,
    fit_last,
    fit_low_rank,
    fits_all,
    has_closed_form,
)
from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.kinds import reads_features, weight_of
from tdcompress.layers.moments import check_finite
from tdcompress.layers.reshapes import Regroup
from tdcompress.watching import Call


class LayerFit:
    """One layer of the compressed model, on its way to the original's features.

    Args:
        name: of the layer.
        model: the compressed model; the layer in it is changed by `settle`.
        dense: the original's layer.
        fit: what may be fitted, see `calibrate`.
        centred: whether something else makes up for a mean that is lost.
        calls: how often a forward calls the layer.

    Attributes:
        watched: the module whose calls `take_call` shall be told.
        calls: how many of them in a forward; none of a layer that is not fitted.
    """

    def __init__(self, name: str, model: nn.Module, dense: Any, fit: str, *, centred: bool, calls: int) -> None:
        layer = model.get_submodule(name)
        assert isinstance(layer, FactorizedConv)
        self.name, self.layer, self.dense, self.calls = name, layer, dense, calls
        self._goals: deque[Goal] = deque()
        self._strayed = False
        self._settle: Callable[[Regression], None] | None = None
        self.watched: nn.Module = layer
        spec = layer.spec
        centred = centred or layer.bias is not None
        if fit == "bias" or layer.transposed or _is_shared(model, layer):
            pass
        elif fit == "all" and has_closed_form(type(layer), layer.spec, layer.axes):
            self._settle = lambda seen: fit_low_rank(layer, seen, weight_of(dense))
        elif fit == "all" and fits_all(layer):
            self._settle = lambda seen: fit_all(layer, seen, weight_of(dense))
        elif not isinstance(layer[-1], Regroup):  # behind which the last weight does not see whole outputs
            self.watched, spec = layer[-1], layer.stage_specs[-1]
            self._settle = lambda seen: fit_last(layer, seen)
        self._seen: Regression | MeanError
        self._seen = MeanError(spec) if self._settle is None else Regression(spec, centred=centred)
        if not reads_features(dense):  # an embedding is called with numbers of rows, and is the best of its rank
            self.calls = 0

    @property
    def nbytes(self) -> int:
        """What the equations take."""
        return 0 if isinstance(self._seen, MeanError) else self._seen.nbytes

    def goal(self, call: Call) -> Goal:
        """What is kept of what the original's layer answers."""
        return self._seen.goal(call.first_output)

    def expect(self, goals: Sequence[Goal]) -> None:
        """The goals of the calls that come next, in one forward."""
        self._strayed = self.strayed
        self._goals = deque(goals)

    def take_call(self, call: Call) -> None:
        """What the compressed layer, or the stage of it that is watched, is called with and answers."""
        goal = self._goals.popleft() if self._goals else None
        if goal is None or goal.elements != call.first_output.numel():
            self._strayed = True
        elif isinstance(self._seen, MeanError):
            self._seen.update(call.first_output, goal)
        else:
            self._seen.update(call.input, goal)

    @property
    def strayed(self) -> bool:
        """Whether the layer was called with other samples than the original's.

        A mixture's experts are where the routing changed.
        """
        return self._strayed or bool(self._goals)

    def settle(self) -> None:
        """Write what was found into the layer, and forget the equations.

        One that `strayed` stays as it is: it has nothing to be compared with.

        Raises:
            CompressionError: what was seen is not finite.
        """
        seen, self._seen = self._seen, MeanError(self.layer.spec)
        if self.strayed or not seen.count:
            return
        try:
            if isinstance(seen, MeanError):
                seen.settle(self.layer)
            elif self._settle is not None:
                self._settle(seen)
        except CompressionError as error:
            raise error.at(self.name) from None


class MeanError:
    """The mean of the original's features less that of the compressed layer's, by channel."""

    def __init__(self, spec: ConvSpec) -> None:
        self.axis = -1 - len(spec.kernel_size)
        self.total, self.count = torch.zeros(spec.out_channels, dtype=torch.float64, device="cpu"), 0

    def goal(self, output: Tensor) -> Goal:
        """What is kept of the original's output."""
        return Goal(self._sum(output), None, output.numel())

    def update(self, output: Tensor, goal: Goal) -> None:
        """Take in what the compressed layer answers."""
        apart = goal.values - self._sum(output)
        self.total = self.total.to(apart) + apart
        self.count += output.numel() // len(apart)

    def _sum(self, output: Tensor) -> Tensor:  # (channels,)
        return output.double().movedim(self.axis, -1).flatten(0, -2).sum(0)

    def settle(self, layer: FactorizedConv) -> None:
        """Move the bias by the mean error."""
        check_finite(self.total)
        if layer.bias is not None:
            layer.bias.add_((self.total / self.count).to(layer.bias))


def _is_shared(model: nn.Module, layer: FactorizedConv) -> bool:
    """Whether a weight of the layer is another module's as well, which would change with it."""
    weights = {id(stage.weight) for stage in layer.weighted}
    inside = {id(stage) for stage in layer}
    return any(
        id(parameter) in weights
        for module in model.modules()
        if id(module) not in inside
        for parameter in module._parameters.values()
    )
