"""What every factorized convolution promises, and the way from a dense one to it and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tdcompress.decompositions import Solver
from tdcompress.decompositions.algebra import check_tensor, relative_error
from tdcompress.errors import warn
from tdcompress.layers.arranging import MethodOptions
from tdcompress.layers.eager import EagerStack
from tdcompress.layers.exchange import Exchange
from tdcompress.layers.fisher import FisherFactors, whitening_of
from tdcompress.layers.kinds import bias_of, weight_of
from tdcompress.layers.method import Factors
from tdcompress.layers.moments import InputMoments
from tdcompress.layers.parameters import parameter
from tdcompress.layers.request import Request
from tdcompress.layers.search import best_candidate, check_reachable
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.whitening import Whitening, takes_over_mean
from tdcompress.shapes import AskedRank, Axes


class FactorizedConv(EagerStack[Factors, MethodOptions], Exchange[Factors, MethodOptions]):
    """A convolution as a stack of plain convolutions that do the same with fewer parameters.

    The stack is an ordinary `nn.Sequential`, so whatever PyTorch can do with convolutions it can do with
    this: compile, export, autocast, quantize, prune, copy, save. Only the last stage has a bias. At any rank
    the stack equals the dense convolution with the kernel `weight`, and at full rank the one it was made from.

    A transposed convolution becomes a stack with transposed stages, and a linear layer, where the method takes
    them, one of linear layers; an embedding becomes a narrower one and a linear layer.

    It keeps the attributes of the layer that it stands for, `in_features` and `padding_idx` for example, and has
    `in_channels`, `out_channels`, `kernel_size`, `stride`, `padding`, `dilation`, `groups`, `padding_mode`,
    `transposed`, `output_padding` and `bias` whatever that is.

    A new method is a subclass that fills in the abstract methods, see `tdcompress.layers.method.Method`.

    Args:
        spec: the convolution to stand for.
        rank: the rank, with as many entries as the method has; one whole number for all of them.
        axes: which spatial axes the stages in the middle work along, in their order; the method's own
            arrangement by default.
        device: where the stages' parameters are made.
        dtype: their type.

    Attributes:
        spec: the convolution that the stack stands for.
        ranks: the rank, always a tuple.
        axes: the arrangement of the spatial axes.
        solution: how the factors were found; None for a layer that was built with fresh weights.
        ratio_asked: the ratio that was asked for; None if it was a rank. `ratio` is what was reached.
    """

    # --- from a dense convolution and back --------------------------------------------------------------

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        *,
        ratio: float | None = None,
        rank: AskedRank = None,
        solver: Solver = None,
        seed: int | torch.Generator = 0,
        axes: Axes | None = None,
        whiten: InputMoments | FisherFactors | None = None,
    ) -> Self:
        """Factorize a convolution; the one given is not touched.

        Args:
            conv: an `nn.Conv1d` to `nn.Conv3d`, an `nn.ConvTranspose1d` to `nn.ConvTranspose3d`, or, for methods
                that take a matrix, an `nn.Linear`, an `nn.Embedding` or a `Conv1D` of `transformers`; or a layer of a
                registered kind.
            ratio: the share of the weight's parameters to remove, in (0, 1). At most `1 − ratio` is kept,
                never more, and the budget is used up to the next rank step.
            rank: an exact rank instead of a ratio: a number for CP and SVD, (out, in) for Tucker, the inner ranks
                along (in, *spatial, out) for the tensor train, in the given order of the axes; one number stands for
                all entries. Or `"tensorly-torch"`, with a ratio, for the rank that tensorly-torch and the paper would
                take.
            solver: None for the method's defaults, its options (`CPOptions`, `TuckerOptions`, `TTOptions`,
                `SVDOptions`), or `"tensorly"` for the paper's own.
            seed: what random starts are drawn from, a number or a `torch.Generator`.
            axes: the only arrangement of the spatial axes to consider, as in the attribute `axes`; by default all that
                the method and its options have are tried for a ratio, and a rank is meant for the first.
            whiten: moments of this layer's inputs. The features, not the weights, are then approximated best, as far as
                the second moment is one of channels times one of kernel positions; the bias takes over the mean of
                what is lost. See `input_moments`. With `FisherFactors` it is the model's predictions that are, as far
                as their second order goes; methods that read a matrix through a grid look at the features alone.

        Returns:
            The factorized layer with the convolution's dtype, device, memory format, training mode and requires_grad.

        Raises:
            CompressionError: what was given cannot be factorized as asked; the message says why.
        """
        options = cls.options_from(solver)
        request = Request(options=options, ratio=ratio, rank=rank, axes=axes, whiten=whiten, seed=seed)
        layer = cls.factorized(conv, request)
        if layer.growth:
            warn(layer.growth)
        return layer

    @classmethod
    def factorized(cls, conv: nn.Module, request: Request[MethodOptions]) -> Self:
        """What `from_conv` gives, without its warning, which must not be lost on another process."""
        spec, weight, bias = ConvSpec.of(conv), weight_of(conv), bias_of(conv)
        request.check()
        check_reachable(cls, spec, request.bound, request.options)
        check_tensor(weight)
        whitening = None if request.whiten is None else whitening_of(request.whiten, spec)
        best = best_candidate(cls, spec, weight.detach(), request, whitening)
        layer = cls(spec, best.rank, best.axes, device="meta")  # on meta: no fresh weights, no global generator
        parts = layer.stage_specs
        every = cls.stage_kernels(best.decompositions, parts, best.axes, whitening)
        for stage, part, kernels in zip(layer.weighted, parts, every, strict=True):
            stage.weight = parameter(part.to_weight(kernels).to(weight.dtype), like=weight)
        if bias is not None:
            layer[-1].bias = parameter(bias.detach().clone(), like=bias)
        layer.solution = best.solution
        layer.ratio_asked = None if request.ratio is None else float(request.ratio)
        if whitening is not None:
            layer._complete_whitened(weight, whitening)
        return layer.train(conv.training)

    def _complete_whitened(self, dense: Tensor, whitening: Whitening) -> None:
        """Let the bias make up for the mean that was lost, and say how far the weight itself is from the dense one."""
        with torch.no_grad():
            weight = self.weight
            if self.bias is not None and takes_over_mean(self.spec):
                self.bias.add_(whitening.lost_mean(dense.double() - weight.double(), self.spec).to(self.bias))
            if self.solution is not None:
                self.solution = replace(self.solution, relative_error=relative_error(dense, weight))

    def to_conv(self) -> Any:
        """The dense layer, of the original's kind, that does what this layer does, with its own copy of the weights."""
        conv, kind = self.spec.build(device="meta"), self.spec.adapter
        setattr(conv, kind.weight, parameter(self.weight.detach(), like=self.weighted[-1].weight))
        if self.bias is not None:
            setattr(conv, kind.bias, parameter(self.bias.detach().clone(), like=self.bias))
        return conv.train(self.training)

    def extra_repr(self) -> str:
        """The convolution, the rank, and what the decomposition reached."""
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}, "
        shown += f"ratio={self.ratio:.4f}"
        return shown if self.solution is None else f"{shown}, relative_error={self.solution.relative_error:.4f}"
