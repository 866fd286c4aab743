"""The registry of error metrics: a name -> a function of the original and its approximation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from torch import Tensor

from tdcompress.errors import CompressionError, unknown

MetricFunction = Callable[..., Tensor | float]
On = Literal["weights", "features", "outputs"]
_Function = TypeVar("_Function", bound=MetricFunction)


@dataclass(frozen=True)
class Metric:
    """An error metric.

    Attributes:
        name: how it is asked for, and its column in a table of measurements.
        on: `"weights"`: called once with the two kernels, (out, in / groups, *kernel_size), returns a number.
            `"features"`: called for every batch with the two outputs, (samples, …), returns one number a
            sample, (samples,); they are averaged over all samples.
            `"outputs"`: called for every batch with what the model says before and after this one layer was replaced,
            two `tdcompress.outputs.Output`, returns one number a row, (rows,); they are averaged over all rows.
        function: the function itself.
        foreseen: of a metric on outputs, that no compressed model is run for it: it is called once, with the layer
            before, the layer after and the layer's `FisherFactors`, and returns a number.
        version: a number that changes when the metric's values do; a study measures its trials anew then.
    """

    name: str
    on: On
    function: MetricFunction
    version: int = 1
    foreseen: bool = False

    @property
    def needs_data(self) -> bool:
        """Whether it is about what the model makes of inputs."""
        return self.on != "weights"


METRICS: dict[str, Metric] = {}


def register_metric(
    name: str, *, on: On, replace: bool = False, version: int = 1, foreseen: bool = False
) -> Callable[[_Function], _Function]:
    """Make a function available to `approximation_errors` under a name; a decorator.

    Args:
        name: its name.
        on: what it compares; see `Metric`.
        replace: whether a metric of that name may be overwritten.
        version: raise it when the metric's values change; see `Metric`.
        foreseen: of a metric on outputs, whether it is computed from the layer's `FisherFactors`; see `Metric`.

    Raises:
        CompressionError: the name is taken, `on` is none of these, or a metric is foreseen that is not on outputs.

    >>> import tdcompress as td
    >>> @td.register_metric("max_weights", on="weights")
    ... def max_weights(original, approximation):
    ...     return (original - approximation).abs().max()
    >>> _ = METRICS.pop("max_weights")
    """
    if on not in get_args(On):
        raise CompressionError(f"metric {name!r}: on must be 'weights', 'features' or 'outputs', got {on!r}.")
    if foreseen and on != "outputs":
        raise CompressionError(f"metric {name!r}: only what is on outputs can be foreseen, and it is on {on}.")
    if name in METRICS and not replace:
        raise CompressionError(f"metric {name!r} exists; pass replace=True to overwrite it.")

    def register(function: _Function) -> _Function:
        METRICS[name] = Metric(name, on, function, version, foreseen)
        return function

    return register


def default_metrics(with_data: bool) -> list[str]:
    """The names of the metrics that are computed if none are named.

    Those on weights, and with data those on features. Those on outputs run the model once more for every layer, or
    backward, and have to be named.
    """
    return [name for name, one in METRICS.items() if one.on == "weights" or (with_data and one.on == "features")]


def get_metrics(names: str | Sequence[str]) -> list[Metric]:
    """The metrics of these names, in their order; a single name is a list of one.

    Raises:
        CompressionError: a name is not registered; the known ones are listed.
    """
    names = [names] if isinstance(names, str) else names
    for name in names:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return [METRICS[name] for name in names]
