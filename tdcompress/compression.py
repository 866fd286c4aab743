"""compress(): plan, apply and calibrate in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tdcompress.batches import Data, again
from tdcompress.calibration import Fit, calibrate
from tdcompress.moments import input_moments
from tdcompress.planning import DENSE, plan
from tdcompress.planning.planner import Metric, Objective
from tdcompress.surgery import LayerSelector


def compress(
    model: nn.Module,
    ratio: float = 0.75,
    *,
    methods: Sequence[str] = ("cp", "tucker", "tt", "svd"),
    layers: LayerSelector | None = None,
    objective: Objective = "parameters",
    metric: Metric | None = None,
    example_inputs: Any = None,
    data: Data | None = None,
    fit: Fit = "all",
    seed: int = 0,
) -> nn.Module:
    """Compress a whole model to a budget: plan, apply, and with data calibrate.

    With data the plan minimizes the change of the output, the decompositions are those of whitened kernels, and the
    result is fitted to the original's features. No label is looked at and nothing is trained.

    Args:
        model: any module; it is left alone.
        ratio: the share to remove, see `plan`, as for the arguments below.
        methods: registered names.
        layers: which layers.
        objective: what the ratio is of.
        metric: the error; by default that of the weights, with data that of the features.
        example_inputs: for multiply-adds and latency.
        data: batches of inputs without labels; a thousand samples do.
        fit: what is fitted to the original's features, see `calibrate`.
        seed: what random starts are drawn from.

    Returns:
        The compressed model.

    Raises:
        CompressionError: see `plan` and `calibrate`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
        >>> small = compress(model, 0.8, methods=("tucker",), data=[torch.randn(8, 3, 8, 8)])
        >>> sum(p.numel() for p in small.parameters()) < 0.3 * sum(p.numel() for p in model.parameters())
        True
    """
    inputs = None if data is None else again(data)
    metric = metric or ("relative_weights" if inputs is None else "relative_features")
    found = plan(
        model,
        ratio,
        methods=methods,
        layers=layers,
        objective=objective,
        metric=metric,
        example_inputs=example_inputs,
        data=inputs,
        seed=seed,
    )
    names = [entry.layer for entry in found.layers if entry.choice.method != DENSE]
    if inputs is None or not names:
        return found.apply(model)
    small = found.apply(model, whiten=input_moments(model, inputs, names))
    return calibrate(small, inputs, model, fit=fit, inplace=True)
