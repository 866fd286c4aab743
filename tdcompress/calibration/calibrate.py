"""calibrate(): fit a compressed model to unlabelled data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn

from tdcompress.batches import Data, evaluating, forward, quickest, repeatable
from tdcompress.calibration.batch_norm import estimating, frozen_norms
from tdcompress.calibration.fits import LayerFit
from tdcompress.calibration.order import Order, check_reached, multiply_adds, norms_to_estimate, order_of, waves_of
from tdcompress.calibration.original import Original
from tdcompress.errors import unknown, warn
from tdcompress.metrics.approximation import pairs
from tdcompress.progress import Progress, following
from tdcompress.surgery.selection import listed
from tdcompress.watching import Call, Countdown, run, watching

Fit = Literal["bias", "last", "all"]
FITS: tuple[Fit, ...] = get_args(Fit)


def calibrate(
    compressed: nn.Module,
    data: Data,
    original: nn.Module | None = None,
    *,
    fit: Fit = "all",
    batch_norm: bool = True,
    inplace: bool = False,
    progress: Progress = None,
) -> nn.Module:
    """Fit a compressed model to inputs without labels; no gradient of the model is taken.

    With the original at hand every factorized layer, in the order of the forward, is fitted to the features that the
    original's layer has on the same data, with the inputs that the compressed model itself gives it, so that it makes
    up for what was lost before. The statistics of the BatchNorms behind the first factorized layer are moved by as much
    as what enters them differs between the two models; without the original they are estimated anew, which needs more
    data. All this is computed in evaluation mode; modes are restored, and the original is not changed. Deterministic.

    A BatchNorm that is in evaluation mode in a model in training mode counts as frozen and stays as it is, as do norms
    without running statistics. A layer that is called with other samples than the original's, as a mixture's experts
    are where the routing changed, stays as it was decomposed, with a warning.

    Args:
        compressed: a model with factorized layers, in any precision. It is left alone unless `inplace`.
        data: batches of inputs as for `approximation_errors`, which can be gone through several times: a list or a
            `DataLoader`, not a generator. What stands beside the inputs is not looked at. A thousand samples do.
        original: the model before; without it there are only the statistics of BatchNorm.
        fit: what is fitted to the original's features: `"bias"`, by the mean error alone; `"last"`, the last stage of
            every layer by least squares in closed form; `"all"`, all stages together: in closed form for the SVD of a
            matrix, else to a local optimum, or where the patches are too large for that the last stage alone.
            A layer without bias leaves the mean to the BatchNorm behind it. Of transposed layers, and of layers that
            share their weights with others, only the bias is fitted; embeddings stay as they are.
        batch_norm: whether to estimate the statistics of BatchNorm.
        inplace: change `compressed` itself, when all is computed.
        progress: True for a bar, False for none, a function of (done, total, what); by default a bar in a terminal.

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
    check_fit(fit)
    model = fitted(copy.deepcopy(compressed), repeatable(data), original, fit, batch_norm=batch_norm, progress=progress)
    if not inplace:
        return model
    compressed.load_state_dict(model.state_dict())
    return compressed


def check_fit(fit: str) -> None:
    """Refuse an unknown `fit`.

    Raises:
        CompressionError: the known ones are listed.
    """
    if fit not in FITS:
        raise unknown("fit", fit, FITS)


def fitted(
    model: nn.Module,
    inputs: Iterable[Any],
    original: nn.Module | None,
    fit: Fit,
    *,
    batch_norm: bool = True,
    progress: Progress = None,
) -> nn.Module:
    """What `calibrate` does, on a model that nobody else has: it is changed, and whatever goes wrong, it is lost."""
    frozen = frozen_norms(model)
    with torch.no_grad(), evaluating(model, *([] if original is None else [original])):
        inputs = quickest(inputs, model, *([] if original is None else [original]))
        order = order_of(model, inputs, frozen if batch_norm else None)
        if original is not None:
            _fit(model, inputs, original, order, fit, progress)
        elif norms := order.norms:
            with estimating(model, norms, {}):
                for batch in inputs:
                    forward(model, batch)
    return model


def _fit(
    model: nn.Module,
    inputs: Iterable[Any],
    original: nn.Module,
    order: Order,
    fit: Fit,
    progress: Progress,
) -> None:
    """Fit every layer to the original's, wave after wave, and then what is behind them."""
    matched, steps = dict(pairs(original, model)), order.steps
    check_reached(matched, steps)
    behind = [*(bool(step.norms) for step in steps[1:]), bool(order.tail)]
    fits = [
        # Only a BatchNorm behind it makes up for a mean that a layer without bias cannot have.
        LayerFit(step.name, model, matched[step.name][0], fit, centred=centred, calls=step.calls)
        for step, centred in zip(steps, behind, strict=True)
    ]
    before = Original(original, inputs, fits, order.norms)
    running = [model] if before.is_kept else [model, original]
    waves = waves_of(fits, partial(multiply_adds, running, inputs))
    *between, last = norms_to_estimate(order, [len(wave) for wave in waves])
    with following(progress, len(fits), "calibrate") as step_done:
        for wave, norms in zip(waves, between, strict=True):
            _observe(wave, norms, model, before, inputs)
            for one in wave:
                one.settle()
                step_done(one.name)
    if strayed := [one.name for one in fits if one.strayed]:
        warn(
            f"{listed(strayed)}: the compressed model calls them with other samples than the original does, as it does "
            "experts whose routing changed; they stay as they were decomposed."
        )
    if last:
        _observe([], last, model, before, inputs)


def _observe(
    wave: Sequence[LayerFit], norms: Sequence[str], model: nn.Module, original: Original, inputs: Iterable[Any]
) -> None:
    """Show every layer of a wave what it is called with and what the original's answers, and norms what they see."""
    references = original.references(norms)
    with estimating(model, norms, references):
        for number, batch in enumerate(inputs):
            original.show(number, batch, wave, references)  # first: the norms need its statistics of this batch
            _watch(model, wave, batch)


def _watch(model: nn.Module, wave: Sequence[LayerFit], batch: Any) -> None:
    """One forward, up to the last call of the wave's layers; to its end without any."""
    by_name, countdown = {one.name: one for one in wave}, Countdown({one.name: one.calls for one in wave})

    def note(name: str, call: Call) -> None:
        if countdown.take(name):
            by_name[name].take_call(call)
        countdown.end()

    with watching({one.name: one.watched for one in wave}, note):
        run(model, batch)
