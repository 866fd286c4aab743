"""Factorized layers as tensorly's classes, and back: what `FactorizedConv` has of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tdcompress.decompositions.exchange import form_of, to_tensorly
from tdcompress.decompositions.forms import Form
from tdcompress.errors import CompressionError, warn
from tdcompress.layers.arranging import MethodOptions
from tdcompress.layers.kinds import bias_of, weight_of
from tdcompress.layers.method import Factors
from tdcompress.layers.parameters import parameter
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.stacked import StackedConv
from tdcompress.shapes import Axes, Rank


class Exchange(StackedConv[Factors, MethodOptions]):
    """The way from a factorized layer to tensorly's classes and back.

    A method whose factors tensorly has a class for fills in `forms`, `form` and `of_form`; for the others both ways
    are refused.
    """

    # --- what a method fills in -------------------------------------------------------------------------

    @classmethod
    def forms(cls, spec: ConvSpec) -> tuple[type[Form], ...]:
        """The forms that are layers of this method as they are; none if tensorly has no class for its factors."""
        return ()

    def form(self, kernels: Sequence[Tensor]) -> Form:
        """One group's factors, differentiably.

        Args:
            kernels: the group's share of every stage's weight, (blocks, out, in, *kernel size of the stage).

        Raises:
            CompressionError: tensorly has no class for them.
        """
        raise CompressionError(
            f"tensorly has no class for the factors of method {self.method!r}; `layer.weight` is the dense weight."
        )

    @classmethod
    def of_form(cls, form: Form, spec: ConvSpec, axes: Axes) -> tuple[Rank, Sequence[Tensor]]:
        """The rank, and one group's share of every stage's weight as `stage_weights` has it, differentiably.

        Raises:
            CompressionError: a layer of this method cannot be made of it.
        """
        raise CompressionError(f"{cls.method} is not made of a {form.name}.")

    # --- there and back ---------------------------------------------------------------------------------

    def to_tensorly(self) -> Any:
        """The factors as an object of tensorly's, exactly.

        What it stands for is one group's kernel, (out / groups, in / groups, *kernel_size), whatever way the layer's
        weight lies:

        - CP: a `CPTensor` of that shape with weights of 1. If the spatial axes are one stage, `axes` ((0, 1),), they
          are one mode, too: (out, in, height · width).
        - Tucker: a `TuckerTensor` of that shape, whose spatial factors are identities.
        - Hierarchical Tucker: a `TuckerTensor` of (out, in, height · width).
        - Tensor train: a `TTTensor` of (in, *kernel_size, out), the spatial modes in the order of `axes`.
        - Tensor ring: a `TRTensor` of the same, whose first bond is that of the slices.
        - SVD: of a matrix a `CPTensor` of (out, in) with weights of 1; of a convolution with all spatial axes in its
          first stage a `TuckerTensor` whose factors are identities but for the first. Other splits are refused.
        - Kronecker, tensor-train matrix: a `TTMatrix` of the grid of rows and that of columns. Where one of them is
          strided, `axes` say so, and the object does not.

        Returns:
            The object, or for a layer with several groups a list of one for each. Its factors are PyTorch tensors, own
            copies without gradients, so tensorly has to run on its backend `"pytorch"` to compute with them.

        Raises:
            CompressionError: tensorly has no class for these factors.

        >>> import tdcompress as td
        >>> layer = td.CPConv.from_conv(nn.Conv2d(16, 32, 3), rank=5)
        >>> tensor = layer.to_tensorly()
        >>> type(tensor).__name__, tensor.shape, tensor.rank
        ('CPTensor', (32, 16, 3, 3), 5)
        """
        with torch.no_grad():
            theirs = [to_tensorly(type(form)(*map(_copied, vars(form).values()))) for form in self.group_forms()]
        return theirs[0] if len(theirs) == 1 else theirs

    @classmethod
    def from_tensorly(cls, decomposition: Any, *, like: nn.Module, axes: Axes | None = None) -> Self:
        """A layer with the factors of a decomposition that tensorly or tensorly-torch made of a layer's kernel.

        Exact: nothing is solved for, and the dense weight is that of the decomposition up to rounding. The weights of a
        CP are spread evenly over its factors. Ranks that cannot be filled, as tensorly's rules give them for
        the tensor train, are cut to what can, which loses nothing; a ring with bonds above those of an exact train is
        refused.

        Args:
            decomposition: what `to_tensorly` gives for this method: a `CPTensor`, `TuckerTensor`, `TTTensor`,
                `TRTensor` or `TTMatrix` of the shapes listed there, of tensorly or of tensorly-torch (there a
                `BlockTT`), with factors of NumPy or PyTorch; for a layer with several groups a list of one for each.
                Spatial factors of a `TuckerTensor` are multiplied into its core, and may be missing, as in what
                `partial_tucker(kernel, rank, modes=[0, 1])` gives.
            like: the layer to take the place of, dense or factorized. What the new one has of it: all arguments,
                its own copy of the bias, dtype, device, memory format, training mode and requires_grad.
            axes: the arrangement of the spatial axes that the decomposition is of, as in the attribute `axes`; by
                default that of `like` if it is of this method, else the method's own.

        Returns:
            The layer. Its `solution` is None, for who solved, and how well, is not known.

        Raises:
            CompressionError: the decomposition is not of that kernel, or the method not of that class.

        >>> import tdcompress as td
        >>> import tensorly
        >>> conv = nn.Conv2d(6, 8, 3, padding=1)
        >>> found = tensorly.decomposition.parafac(tensorly.tensor(conv.weight.tolist()), rank=3)
        >>> layer = td.CPConv.from_tensorly(found, like=conv)
        >>> [tuple(stage.weight.shape) for stage in layer], layer(torch.zeros(1, 6, 4, 4)).shape
        ([(3, 6, 1, 1), (3, 1, 3, 1), (3, 1, 1, 3), (8, 3, 1, 1)], torch.Size([1, 8, 4, 4]))
        """
        spec = like.spec if isinstance(like, Exchange) else ConvSpec.of(like)
        if axes is None and isinstance(like, cls):
            axes = like.axes
        groups = [decomposition] if spec.groups == 1 else decomposition
        if not isinstance(groups, list) or len(groups) != spec.groups:
            raise CompressionError(f"the layer has {spec.groups} groups; give a list of one decomposition for each.")
        layer = cls.of_forms([form_of(one) for one in groups], spec, axes)
        weight = next(like.parameters()) if isinstance(like, Exchange) else weight_of(like)
        for stage in layer.weighted:
            stage.weight = parameter(stage.weight.detach().to(weight), like=weight)
        bias = bias_of(like)
        if bias is not None:
            layer[-1].bias = parameter(bias.detach().clone(), like=bias)
        if layer.growth:
            warn(layer.growth)
        return layer.train(like.training)

    def group_forms(self) -> list[Form]:
        """The factors of every group, differentiably.

        Raises:
            CompressionError: see `to_tensorly`.
        """
        stages = [
            part.to_kernels(weight_of(stage)) for stage, part in zip(self.weighted, self.stage_specs, strict=True)
        ]
        by_group = [one.reshape(self.spec.groups, -1, *one.shape[1:]) for one in stages]
        return [self.form(kernels) for kernels in zip(*by_group, strict=True)]

    @classmethod
    def of_forms(cls, forms: Sequence[Form], spec: ConvSpec, axes: Axes | None = None) -> Self:
        """A layer of the given factors, one form a group, with requires_grad as they have it, and an unset bias.

        Args:
            forms: of kernels as `to_tensorly` describes them.
            spec: the layer to stand for.
            axes: the arrangement of the spatial axes; the method's own by default.

        Raises:
            CompressionError: see `from_tensorly`.
        """
        if spec.is_matrix and not cls.forms(spec):
            raise CompressionError(f"{cls.method} is for convolutions; the weight of a {spec.kind} is a matrix.")
        if axes is None:
            axes = cls.ways(spec, cls.options_from(None))[0]
        axes = tuple(tuple(group) for group in axes)
        if sorted(axis for group in axes for axis in group) != list(spec.kernel_axes):
            raise CompressionError(f"axes must have each of the spatial axes {spec.kernel_axes} once, got {axes}.")
        return cls._of_forms_along(forms, spec, axes)

    @classmethod
    def _of_forms_along(cls, forms: Sequence[Form], spec: ConvSpec, axes: Axes) -> Self:
        with torch.enable_grad():  # so that what is computed of trained factors says that it is trained
            ranks, by_group = zip(*(cls.of_form(form, spec, axes) for form in forms), strict=True)
        if len(set(ranks)) > 1:
            raise CompressionError(f"the groups of a layer have one rank, got {', '.join(map(str, ranks))}.")
        layer = cls(spec, ranks[0], axes, device="meta")
        for stage, part, parts in zip(layer.weighted, layer.stage_specs, zip(*by_group, strict=True), strict=True):
            kernels = torch.cat([values.flatten() for values in parts]).view(part.groups, *part.kernel_shape)
            weight = part.to_weight(kernels.detach()).contiguous()
            stage.weight = nn.Parameter(weight, requires_grad=any(values.requires_grad for values in parts))
        return layer


def check_shape(form: Form, shape: Sequence[int], what: str) -> None:
    """Refuse a form of another tensor.

    Args:
        form: the form.
        shape: that of the tensor it has to stand for.
        what: the modes of it, in words.

    Raises:
        CompressionError: it is so.
    """
    if form.shape != tuple(shape):
        raise CompressionError(f"a {form.name} of the shape {tuple(shape)}, {what}, is needed here, got {form.shape}.")


def _copied(values: Tensor | tuple[Tensor, ...]) -> Any:
    return values.detach().clone() if isinstance(values, Tensor) else tuple(value.detach().clone() for value in values)
