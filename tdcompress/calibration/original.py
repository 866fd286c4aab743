"""What the original says to the data: the features to be fitted to, and what its BatchNorms see."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tdcompress.batches import same_every_pass
from tdcompress.calibration.batch_norm import Pooled, Reference, is_estimated
from tdcompress.calibration.fits import LayerFit
from tdcompress.calibration.regression import Goal
from tdcompress.watching import Call, Countdown, run, watching

_BYTES = 256 << 20  # of features that are kept


@dataclass(frozen=True)
class _Said:
    """To one batch: the goals of the layers, in the order of their calls, and what the norms have seen by then."""

    goals: Mapping[str, Sequence[Goal]]
    seen: Mapping[str, Pooled]


class Original:
    """The model before, shown batch after batch, as often as the compressed one is.

    Where every pass has the same batches, and what is kept of the features fits into memory, it runs once over the
    data; else it runs along in every pass, as far as it has to.

    Args:
        model: in evaluation mode.
        inputs: batches that can be gone through more than once.
        fits: the layers that are fitted.
        norms: the BatchNorms of the compressed model that are estimated.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Any], fits: Sequence[LayerFit], norms: Iterable[str]) -> None:
        self._model = model
        before = {name: module for name, module in model.named_modules() if is_estimated(module)}
        self._norms = {name: before[name] for name in norms if name in before}
        self._kept = self._once(inputs, fits) if same_every_pass(inputs) else None

    @property
    def is_kept(self) -> bool:
        """Whether it runs no more."""
        return self._kept is not None

    def references(self, norms: Iterable[str]) -> dict[str, Reference]:
        """The original's norms by name, with nothing seen as yet."""
        return {name: Reference(self._norms[name], Pooled()) for name in norms if name in self._norms}

    def show(self, number: int, batch: Any, fits: Sequence[LayerFit], references: Mapping[str, Reference]) -> None:
        """Give layers their goals for a batch, and norms what they see of it.

        Args:
            number: of the batch.
            batch: what it is.
            fits: some of the layers.
            references: of some of the norms, which have been shown the batches before.
        """
        if self._kept is None:
            goals = self._run(batch, fits, references)
        else:
            goals = self._kept[number].goals
            for name, reference in references.items():
                reference.pooled.become(self._kept[number].seen[name])
        for one in fits:
            one.expect(goals[one.name])

    def _once(self, inputs: Iterable[Any], fits: Sequence[LayerFit]) -> list[_Said] | None:
        """What it says to every batch; None if that is too much to be kept."""
        kept: list[_Said] = []
        size, references = 0, self.references(self._norms)
        for batch in inputs:
            goals = self._run(batch, fits, references)
            size += sum(goal.nbytes for found in goals.values() for goal in found)
            if size > _BYTES:
                return None
            kept.append(_Said(goals, {name: copy.copy(one.pooled) for name, one in references.items()}))
        return kept

    def _run(
        self, batch: Any, fits: Sequence[LayerFit], references: Mapping[str, Reference]
    ) -> Mapping[str, Sequence[Goal]]:
        """The goals of the layers, from one forward that ends where they and the norms have been seen."""
        goals: dict[str, list[Goal]] = {one.name: [] for one in fits}
        by_name = {one.name: one for one in fits}
        countdown = Countdown({**{one.name: one.calls for one in fits}, **dict.fromkeys(references, 1)})

        def answered(name: str, call: Call) -> None:
            if countdown.take(name):
                goals[name].append(by_name[name].goal(call))
            countdown.end()

        def normalized(name: str, call: Call) -> None:
            references[name].pooled.update(call.input)
            countdown.take(name)
            countdown.end()

        layers = {one.name: one.dense for one in fits}
        norms = {name: reference.norm for name, reference in references.items()}
        with watching(norms, normalized, outputs=False), watching(layers, answered):
            run(self._model, batch)
        return goals
