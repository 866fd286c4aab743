"""Model + data -> the moments of what its layers see, in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized

import torch
from torch import nn

from tdcompress.batches import Data, batches, evaluating
from tdcompress.errors import CompressionError, naming
from tdcompress.layers import ConvSpec, InputMoments
from tdcompress.layers.kinds import reads_features
from tdcompress.progress import Progress, following
from tdcompress.surgery import LayerSelector, select_layers
from tdcompress.watching import Call, Reached, run, watching


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
    selected = select_layers(model, (lambda name, module: True) if layer is None else layer, linear=True)
    selected = [(name, module) for name, module in selected if reads_features(module)]
    if not selected:
        return {}
    moments_of = {}
    for name, module in selected:
        with naming(name):
            moments_of[name] = InputMoments(ConvSpec.read(module), joint=joint)
    calls: Counter[str] = Counter()  # in the first forward
    left: Counter[str] = Counter()  # in this one; below zero in the first, which is seen to its end

    def note(name: str, call: Call) -> None:
        moments_of[name].update(call.input)
        left[name] -= 1
        if calls and not +left:  # what comes after the last of the layers is of no interest
            raise Reached

    inputs = batches(data)
    total = len(inputs) if isinstance(inputs, Sized) else 0
    with (
        torch.no_grad(),
        evaluating(model),
        following(progress, total, "input moments") as step,
        watching(dict(selected), note, outputs=False),
    ):
        for batch in inputs:
            run(model, batch)
            calls = calls or Counter({name: -count for name, count in left.items()})
            left = calls.copy()
            step("")
    unseen = [name for name, moments in moments_of.items() if not moments.count]
    if len(unseen) == len(moments_of):
        raise CompressionError("the data is empty, or the forward reaches none of the layers.")
    if unseen and layer is not None:
        raise CompressionError(f"the model's forward never reached {', '.join(map(repr, unseen))}.")
    return {name: moments for name, moments in moments_of.items() if moments.count}
