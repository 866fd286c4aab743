"""What the output of a model says of a layer's weight: the Kronecker factors of the Fisher information."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdcompress.decompositions.algebra import add_self_product
from tdcompress.errors import CompressionError
from tdcompress.layers.kinds import bias_of, weight_of
from tdcompress.layers.moments import (
    InputMoments,
    check_finite,
    check_size,
    moment_bytes,
    precision,
    second_moment_bytes,
)
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import Whitening, takes_over_mean


class FisherFactors:
    """A and G of a layer: the second moments of what it sees, and of the gradients of what the output says.

    Streamed, as `InputMoments` are: the size does not depend on how much was seen. `fisher_factors` makes one for every
    layer of a model. Of a transposed layer the parts are swapped: an input pixel is seen by the whole kernel, whose
    patches are those of the gradients.

    Args:
        spec: the layer.
        joint: keep the whole second moment of the patches; without it that of channels times that of positions in the
            kernel stands for it.

    Attributes:
        patches: of the inputs of the layer; of a transposed one, of the gradients of its outputs.
        rows: how many predictions the gradients are of, each draw of signs by itself.

    Raises:
        CompressionError: the layer takes numbers of rows, or a second moment would be too large.

    >>> linear = nn.Linear(3, 2)
    >>> factors = FisherFactors(ConvSpec.of(linear))
    >>> factors.update_inputs(torch.ones(4, 3))
    >>> factors.update_gradients(torch.ones(4, 2))
    >>> factors.rows = 4
    >>> factors.loss(torch.ones(2, 3))
    18.0
    """

    def __init__(self, spec: ConvSpec, *, joint: bool = True) -> None:
        if not spec.adapter.reads_features:
            raise CompressionError(
                f"the inputs of a layer of kind {spec.kind} are numbers of rows, which have no second moment; leave it "
                "out, or measure output_divergence."
            )
        self.spec, self.rows = spec, 0
        self.patches = InputMoments(_adjoint(spec) if spec.transposed else spec, joint=joint)
        size = (spec.in_channels if spec.transposed else spec.out_channels) // spec.groups
        check_size(spec.groups, size, "the gradients", "leave this layer out, or measure output_divergence")
        self._pixels = torch.zeros(spec.groups, size, size, dtype=precision(size), device="cpu")
        self._count = 0  # of pixels

    def update_inputs(self, inputs: Tensor) -> None:
        """Take in what the layer is called with.

        Raises:
            CompressionError: it is not finite.
        """
        if self.spec.transposed:
            self._add_pixels(inputs)
        else:
            self.patches.update(inputs)

    def update_gradients(self, gradients: Tensor) -> None:
        """Take in the gradients with respect to what it answered.

        Raises:
            CompressionError: they are not finite.
        """
        if not self.spec.transposed:
            self._add_pixels(gradients)
            return
        # What an input pixel has a part in: the output as it was before padding cut its margin off.
        pads = map(int, self.spec.padding)  # of a transposed layer always numbers
        edges = [(pad, pad - more) for pad, more in zip(pads, self.spec.output_padding, strict=True)]
        self.patches.update(F.pad(gradients, [n for pair in reversed(edges) for n in pair]))

    def _add_pixels(self, features: Tensor) -> None:
        features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
        axes, groups, size = len(self.spec.kernel_size), *self._pixels.shape[:2]
        features = features.reshape(-1, groups * size, 1) if not axes else features.flatten(-axes)
        rows = features.reshape(-1, groups, size, features.shape[-1]).permute(1, 2, 0, 3).flatten(2)
        check_finite(rows.sum())
        self._pixels = add_self_product(self._pixels.to(rows.device), rows)
        self._count += rows.shape[2]

    @property
    def gradients(self) -> Tensor:
        """G, a prediction: Σ E[g gᵀ] over the positions, (groups, out / groups, out / groups), in float64.

        Raises:
            CompressionError: nothing was seen, or the layer is transposed.
        """
        if self.spec.transposed:
            raise CompressionError("the gradients of a transposed layer have the second moment of patches.")
        self._check_seen()
        return self._pixels.double() / self.rows

    def loss(self, change: Tensor, bias_change: Tensor | None = None) -> float:
        """½ tr(G D A Dᵀ), what the predictions are foreseen to change by, on average.

        Args:
            change: D, of the shape of the layer's weight.
            bias_change: how the bias changes, (out,). That of a transposed layer is not counted.

        Raises:
            CompressionError: nothing was seen.
        """
        self._check_seen()
        spec = self.spec
        kernels = spec.to_kernels(change.detach().double())
        if spec.transposed:
            moment = self.patches.changed(kernels.transpose(1, 2).flatten(2)) * (self.patches.count / self.rows)
            pixels = self._pixels.to(moment) / self._count
        else:
            offset = None if bias_change is None else bias_change.detach().reshape(spec.groups, -1)
            moment = self.patches.changed(kernels.flatten(2), offset)
            pixels = self._pixels.to(moment) / self.rows
        return max(0.0, float((pixels * moment).sum()) / 2)

    def loss_between(self, original: nn.Module, approximation: nn.Module) -> float:
        """What a layer in the place of another is foreseen to change the predictions by."""
        before, after = bias_of(original), bias_of(approximation)
        bias_change = None if before is None or after is None else after - before.to(after)
        weight = weight_of(approximation)
        return self.loss(weight.double() - weight_of(original).to(weight.device).double(), bias_change)

    def whitening(self, *, centred: bool) -> Whitening:
        """The roots of both factors, for kernels of this layer.

        Half the squared norm of what they make of a change of the weight is its loss, but for a scale.

        Args:
            centred: whether the mean of the inputs is taken out, which is right where a bias can make up for it.

        Raises:
            CompressionError: nothing was seen.
        """
        self._check_seen()
        seen = self.patches.whitening(centred=centred and not self.spec.transposed)
        if not self.spec.transposed:
            scale = seen.channels.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
            return replace(seen, outputs=self.gradients.to(scale) * scale)
        pixels = self._pixels.double() / self._count
        scale = pixels.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        mean = torch.zeros(*pixels.shape[:2], 1, dtype=pixels.dtype, device=pixels.device)
        return Whitening(pixels, seen.kernel, mean, outputs=seen.channels.to(scale) * scale)

    def loss_of_all(self, weight: Tensor, *, centred: bool) -> float:
        """What the predictions are foreseen to lose with the whole weight.

        Args:
            weight: of the layer.
            centred: whether the bias makes up for the mean of what is lost.

        Raises:
            CompressionError: nothing was seen.
        """
        if not centred or self.spec.transposed:
            return self.loss(weight)
        kernels = self.spec.to_kernels(weight.detach().double()).flatten(2)
        mean = self.patches.mean.to(kernels).flatten(1)
        return self.loss(weight, -torch.einsum("goi,gi->go", kernels, mean).flatten())

    @property
    def complete(self) -> bool:
        """Whether inputs and gradients were seen."""
        return bool(self.rows and self._count and self.patches.count)

    def _check_seen(self) -> None:
        if not self.complete:
            raise CompressionError("nothing was seen; the data is empty, or the output does not depend on the layer.")


def whitening_of(moments: InputMoments | FisherFactors | Whitening, spec: ConvSpec) -> Whitening:
    """The whitening of a layer's kernels by the moments of its inputs; one that is there already is good as it is.

    Raises:
        CompressionError: the moments are another layer's, or nothing was seen.
    """
    if isinstance(moments, Whitening):
        return moments
    if not isinstance(moments, InputMoments | FisherFactors):
        raise CompressionError(
            f"whiten= takes InputMoments or FisherFactors, see td.input_moments, got a {type(moments).__name__}."
        )
    if moments.spec.with_bias(spec.has_bias) != spec:
        raise CompressionError(f"the moments are of another layer's inputs, {moments.spec}; this one is {spec}.")
    return moments.whitening(centred=takes_over_mean(spec))


def factor_bytes(spec: ConvSpec) -> int:
    """What the factors of a layer take, without the second moment of whole patches; an embedding has none."""
    return moment_bytes(spec) + second_moment_bytes(spec.groups, spec.out_channels // spec.groups)


def _adjoint(spec: ConvSpec) -> ConvSpec:
    """The convolution whose patches are those that a transposed one lays its kernel over, of outputs padded already."""
    return replace(
        spec,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        padding=tuple(0 for _ in spec.kernel_size),
        output_padding=(),
        has_bias=False,
        transposed=False,
        kind="",
        options=(),
    )
