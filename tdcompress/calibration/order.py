"""The order in which layers are fitted: that of a forward, in waves of neighbours that share a pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn

from tdcompress.batches import batches_in
from tdcompress.calibration.batch_norm import is_estimated
from tdcompress.calibration.fits import LayerFit
from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.report.measuring import count_multiply_adds
from tdcompress.watching import Call, run, watching

_ALONE = 8  # so many layers are always fitted one after the other, each in a pass over the data of its own
_FEWEST = 2  # passes, however many layers there are
_WORK = 30 * 10**12  # multiply-adds, some minutes on two cores, that passes may take for more layers to be fitted alone
_BYTES = 768 << 20  # of normal equations at a time


@dataclass
class Step:
    """A factorized layer, how often a forward calls it, and the BatchNorms between the one before it and it."""

    name: str
    norms: list[str]
    calls: int = 0


@dataclass(frozen=True)
class Order:
    """The factorized layers in the order of a forward, and the BatchNorms behind the last."""

    steps: list[Step]
    tail: list[str]

    @property
    def norms(self) -> list[str]:
        """All BatchNorms that are to be estimated."""
        return [*(norm for step in self.steps for norm in step.norms), *self.tail]


def order_of(model: nn.Module, inputs: Iterable[Any], frozen: set[str] | None) -> Order:
    """What a forward on the first batch meets, but for the norms that are `frozen`; no norms at all if that is None.

    Raises:
        CompressionError: the data is empty, or no factorized layer is met.
    """
    steps: dict[str, Step] = {}
    norms: list[str] = []
    met: set[str] = set()
    watched = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, FactorizedConv) or (is_estimated(module) and frozen is not None and name not in frozen)
    }

    def note(name: str, call: Call) -> None:
        if isinstance(watched[name], FactorizedConv):
            step = steps.setdefault(name, Step(name, norms.copy()))
            if not step.calls:
                norms.clear()
            step.calls += 1
        elif steps and name not in met:  # what is before the first factorized layer sees what it always saw
            norms.append(name)
            met.add(name)

    with watching(watched, note, outputs=False):
        for batch in inputs:
            run(model, batch)
            break
        else:
            raise CompressionError("the data is empty; calibration needs at least one batch of inputs.")
    if not steps:
        raise CompressionError("the forward meets no factorized layer; decompose() the model first.")
    return Order(list(steps.values()), norms)


def multiply_adds(models: Iterable[nn.Module], inputs: Iterable[Any]) -> int:
    """Of a pass of these models over the data, as if all batches were like the first one."""
    first = next(iter(inputs))
    return batches_in(inputs) * sum(count_multiply_adds(partial(run, model, first)) for model in models)


def check_reached(names: Iterable[str], steps: Sequence[Step]) -> None:
    """Refuse layers that no forward comes to.

    Raises:
        CompressionError: there are such.
    """
    unseen = set(names) - {step.name for step in steps}
    if unseen:
        raise CompressionError(f"the model's forward never reached {', '.join(map(repr, sorted(unseen)))}.")


def waves_of(fits: Sequence[LayerFit], work: Callable[[], int]) -> list[list[LayerFit]]:
    """Neighbours that are fitted in one pass: as few as the work allows, and by what their equations take.

    Neighbours of one pass are fitted to inputs that none of them has changed yet. What each of them mends, the next one
    has not seen, so that the more of them there are, the less is won, and the less the freer the fit is.

    Args:
        fits: the layers in the order of a forward.
        work: counts the multiply-adds of a pass over the data; it is only called where they decide.
    """
    passes = max(_FEWEST, min(len(fits), _ALONE**2 // len(fits)))
    if passes < len(fits):
        passes = min(len(fits), max(passes, _WORK // max(work(), 1)))
    most = -(-len(fits) // passes)
    waves: list[list[LayerFit]] = []
    for one in fits:
        if not waves or len(waves[-1]) == most or sum(other.nbytes for other in (*waves[-1], one)) > _BYTES:
            waves.append([])
        waves[-1].append(one)
    return waves


def norms_to_estimate(order: Order, sizes: Sequence[int]) -> list[list[str]]:
    """For every wave the BatchNorms whose inputs the wave before or its own layers change; at last those behind all.

    What lies inside a wave is estimated twice: before its layers are fitted, and in the pass of the next one.
    """
    ends = [0, *(sum(sizes[: number + 1]) for number in range(len(sizes)))]
    found, begin = [], 0
    for start, end in pairwise(ends):
        found.append([norm for step in order.steps[begin:end] for norm in step.norms])
        begin = start + 1
    return [*found, [norm for step in order.steps[begin:] for norm in step.norms] + order.tail]
