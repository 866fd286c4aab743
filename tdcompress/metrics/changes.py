"""What a model says with one of its layers replaced, beside what it says itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import evaluating, output_of
from tdcompress.errors import CompressionError
from tdcompress.metrics.means import RunningMean
from tdcompress.outputs import Logits, Output, class_axis, read_output
from tdcompress.replay import Replay, sharing
from tdcompress.watching import Call, watching


class ChangedOutputs:
    """One layer after the other replaced in the same place of a model; what comes before it is computed once.

    Args:
        model: the original; it is left as it was, and shares its parameters with what runs here.
        names: the layers that may be replaced.
        logits: what the output is, see `approximation_errors`.

    Attributes:
        order: the layers that the forward met, in the order in which it did.

    Raises:
        CompressionError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], logits: Logits = None) -> None:
        self._replay = Replay(sharing(model).eval(), 0)
        self._layers = {name: self._replay.modules[name] for name in names}
        self._logits = logits
        self._batches: Sequence[Any] = []
        self._outputs: list[tuple[Tensor, Output]] = []
        self._place = -1
        self.order: list[str] = []

    def show(self, batches: Sequence[Any]) -> None:
        """Take these inputs from now on, and what the original says to them.

        Raises:
            CompressionError: the output cannot be read.
        """
        self._batches, self._place = batches, -1
        self._replay.restart(len(batches))
        met = dict.fromkeys(self.order)

        def note(name: str, call: Call) -> None:
            met.setdefault(name)

        self._outputs = []
        with torch.no_grad(), watching(self._layers, note, outputs=False):
            for number, batch in enumerate(batches):
                result = self._replay.run(number, batch)
                goal = output_of(result).clone()  # for what a model returns may be overwritten by its next forward
                self._outputs.append((goal, read_output(goal, class_axis(result, self._logits))))
        self.order = list(met)

    def update(self, name: str, layer: nn.Module, mean: RunningMean[Output]) -> None:
        """Tell the mean what the model says with another layer in a place; quickest in the order of the forward.

        Raises:
            CompressionError: no forward has met the layer, or the output cannot be read.
        """
        if name not in self.order:
            raise CompressionError(f"the model's forward never reached {name!r}.")
        place, at = self._layers[name], self.order.index(name)
        if at < self._place:
            self._replay.restart(len(self._batches))
        self._place = at
        with torch.no_grad(), evaluating(layer):
            for number, (batch, (goal, before)) in enumerate(zip(self._batches, self._outputs, strict=True)):
                self._replay.advance(number, batch, place, goal)
                mean.update(before, read_output(self._replay.run(number, batch, {place: layer}), self._logits))
