"""Model + data -> the moments of what its layers see, in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sized
from typing import TypeVar

import torch
from torch import nn

from tdcompress.batches import Data, batches, evaluating
from tdcompress.errors import CompressionError, naming
from tdcompress.layers import ConvSpec, InputMoments
from tdcompress.layers.kinds import reads_features
from tdcompress.progress import Progress, following
from tdcompress.surgery import LayerSelector, select_layers
from tdcompress.surgery.selection import listed
from tdcompress.watching import Call, Countdown, run, watching

_Gathered = TypeVar("_Gathered")


def input_moments(
    model: nn.Module, data: Data, layer: LayerSelector | None = None, *, joint: bool = False, progress: Progress = None
) -> dict[str, InputMoments]:
    """Mean and second moment of the inputs of a model's convolutions and linear layers, for `whiten=` of `decompose`.

    One pass, in evaluation mode; the size does not depend on the data. The model is left as it was. Embeddings are left
    out: they take numbers of rows, which have no moments.

    Args:
        model: the model before it is compressed.
        data: batches of inputs, as for `approximation_errors`; what stands beside them is not looked at.
        layer: which layers, as for `decompose`; all by default.
        joint: keep the second moment of whole patches as well, (in_channels · positions in the kernel)² numbers for
            each group. From it the SVD that has all axes in its first stage gives the smallest error that the features
            can have at its rank, whatever their distribution; the other methods have no use for it.
        progress: as for `decompose`; a piece is a batch.

    Returns:
        `{layer name: moments}`.

    Raises:
        CompressionError: there is no such layer, the forward never reaches one that is named, the data is empty or
            not finite, or a whole second moment would be too large.

    >>> import tdcompress as td
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    >>> images = torch.randn(8, 3, 10, 10)
    >>> moments = input_moments(model, images)
    >>> small = td.decompose(model, "2", method="tucker", ratio=0.8, whiten=moments)
    >>> sorted(moments), moments["2"].count
    (['0', '2'], 288)
    """
    selected = select_layers(model, layer, linear=True)
    layers = {name: module for name, module in selected if reads_features(module)}
    if not layers:
        return {}
    moments_of = made_for(layers, lambda spec: InputMoments(spec, joint=joint))
    calls: Counter[str] = Counter()  # in the first forward, which is seen to its end
    countdown: Countdown | None = None

    def note(name: str, call: Call) -> None:
        moments_of[name].update(call.input)
        if countdown is None:
            calls[name] += 1
        else:
            countdown.take(name)
            countdown.end()

    inputs = batches(data)
    total = len(inputs) if isinstance(inputs, Sized) else 0
    with (
        torch.no_grad(),
        evaluating(model),
        following(progress, total, "input moments") as step,
        watching(layers, note, outputs=False),
    ):
        for batch in inputs:
            run(model, batch)
            countdown = Countdown(calls) if calls else None
            step("")
    return those_met(moments_of, lambda moments: moments.count > 0, named=layer is not None)


def made_for(layers: Mapping[str, nn.Module], make: Callable[[ConvSpec], _Gathered]) -> dict[str, _Gathered]:
    """What gathers something of every layer, by name.

    Raises:
        CompressionError: `make` raised it; the layer's name is put in front.
    """
    made = {}
    for name, module in layers.items():
        with naming(name):
            made[name] = make(ConvSpec.read(module))
    return made


def those_met(
    gathered: Mapping[str, _Gathered], met: Callable[[_Gathered], bool], *, named: bool, why: str = ""
) -> dict[str, _Gathered]:
    """What has gathered something; of layers that were named, all have to have.

    Args:
        gathered: by the layer's name.
        met: whether one has.
        named: whether the layers were named.
        why: what else can be the reason that one has not, for the message.

    Raises:
        CompressionError: none has, or one of the layers that were named has not.
    """
    unmet = [name for name, one in gathered.items() if not met(one)]
    if len(unmet) == len(gathered):
        raise CompressionError("the data is empty, or the forward reaches none of the layers.")
    if unmet and named:
        raise CompressionError(
            f"the model's forward never reached {listed(unmet)}{why}; leave them out, or pass inputs that reach them."
        )
    return {name: one for name, one in gathered.items() if name not in unmet}
