"""The registry of error metrics: a name -> a function of the original and its approximation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from tdcompress.errors import CompressionError, unknown

MetricFunction = Callable[[Tensor, Tensor], Tensor | float]
_Function = TypeVar("_Function", bound=MetricFunction)


@dataclass(frozen=True)
class Metric:
    """An error metric.

    Attributes:
        name: how it is asked for, and its column in a table of measurements.
        on: `"weights"`: called once with the two kernels, (out, in / groups, *kernel_size), returns a number.
            `"features"`: called for every batch with the two outputs, (samples, …), returns one number a
            sample, (samples,); they are averaged over all samples.
        function: the function itself.
        version: a number that changes when the metric's values do; a study measures its trials anew then.
    """

    name: str
    on: Literal["weights", "features"]
    function: MetricFunction
    version: int = 1


METRICS: dict[str, Metric] = {}


def register_metric(
    name: str, *, on: Literal["weights", "features"], replace: bool = False, version: int = 1
) -> Callable[[_Function], _Function]:
    """Make a function available to `approximation_errors` under a name; a decorator.

    Args:
        name: its name.
        on: what it compares; see `Metric`.
        replace: whether a metric of that name may be overwritten.
        version: raise it when the metric's values change; see `Metric`.

    Raises:
        CompressionError: the name is taken, or `on` is neither `"weights"` nor `"features"`.

    >>> import tdcompress as td
    >>> @td.register_metric("max_weights", on="weights")
    ... def max_weights(original, approximation):
    ...     return (original - approximation).abs().max()
    >>> _ = METRICS.pop("max_weights")
    """
    if on not in ("weights", "features"):
        raise CompressionError(f"metric {name!r}: on must be 'weights' or 'features', got {on!r}.")
    if name in METRICS and not replace:
        raise CompressionError(f"metric {name!r} exists; pass replace=True to overwrite it.")

    def register(function: _Function) -> _Function:
        METRICS[name] = Metric(name, on, function, version)
        return function

    return register


def get_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, in their order.

    Raises:
        CompressionError: a name is not registered; the known ones are listed.
    """
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return [METRICS[name] for name in names]
