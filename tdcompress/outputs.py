"""What a model's outputs say: the logits of classes, or values, in rows, one for each prediction.

>>> read_output(torch.zeros(5, 10)), read_output(torch.zeros(5, 10), logits=False)
(Output of 5 rows of 10 logits, Output of 5 rows of 10 values)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tdcompress.batches import logits_of, output_of
from tdcompress.errors import CompressionError

Logits = bool | int | None  # whether an output is logits, or the axis of the classes; None to tell by its shape


@dataclass(frozen=True, repr=False)
class Output:
    """The output of a model for one batch.

    Attributes:
        values: (rows, classes) of logits, a row for every prediction: a sample, a token, a pixel; (samples, size) of
            other values. In float32 at least.
        are_logits: which of them.
    """

    values: Tensor
    are_logits: bool

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        rows, size = self.values.shape
        return f"Output of {rows} rows of {size} {'logits' if self.are_logits else 'values'}"


def read_output(result: Any, logits: Logits = None) -> Output:
    """What a model returned, as rows.

    Args:
        result: a tensor, or what `batches.output_of` finds one in.
        logits: True for logits with the classes along the last axis, a number for another axis, False for values. By
            default an output that is called `logits`, as those of `transformers` are, has them along the last axis, and
            (samples, classes) with more than one class are logits; (samples,) and (samples, 1) are values.

    Raises:
        CompressionError: neither can be told, there is no such axis, there is only one class, or the output is not of
            floating point.
    """
    axis = class_axis(result, logits)
    output = output_of(result)
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if axis is False:
        return Output(output.reshape(len(output), -1) if output.ndim else output.reshape(1, 1), False)
    moved = output.movedim(axis, -1)
    return Output(moved.reshape(-1, moved.shape[-1]), True)


def class_axis(result: Any, logits: Logits = None) -> int | Literal[False]:
    """The axis of the classes in the tensor that `batches.output_of` finds in an output; False for values.

    Raises:
        CompressionError: see `read_output`.
    """
    output, named = output_of(result), logits_of(result) is not None
    shape = tuple(output.shape)
    if not output.is_floating_point():
        raise CompressionError(f"the model's output is of {output.dtype}; metrics on outputs need floating point.")
    if logits is None and output.ndim > 2 and not named:
        raise CompressionError(
            f"the model's output has the shape {shape}, which may be logits or not: pass logits=False, or as logits= "
            "the axis of the classes (1 for those of pixels, -1 for those of tokens)."
        )
    if logits is False or (logits is None and not named and (output.ndim < 2 or shape[1] < 2)):
        return False
    axis = -1 if logits is None or logits is True else logits
    if not -output.ndim <= axis < output.ndim or output.ndim < 2:
        raise CompressionError(
            f"logits={logits}: the model's output has the shape {shape} and no such axis of classes."
        )
    if shape[axis] < 2:
        raise CompressionError(
            f"logits={logits}: the model's output, of shape {shape}, has one class there, whose probability is 1 "
            "whatever it says; pass logits=False."
        )
    return axis


def gradients_of(
    said: Tensor, of: Sequence[Tensor], sent: Tensor | None = None, *, again: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of what a model says, or of a number of it; None of what it does not depend on.

    Args:
        said: with a graph.
        of: what it may depend on.
        sent: what to send back from it; None for 1, from a number.
        again: whether more will be sent back from it.

    Raises:
        CompressionError: there is no graph, or the model's forward has overwritten what the way back needs.
    """
    if not said.requires_grad:
        raise CompressionError("the model's output has no gradient; does its forward detach it, or call no_grad()?")
    try:
        return torch.autograd.grad(said, of, sent, retain_graph=again, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise CompressionError(
            "no gradient comes back through the model, because its forward overwrites what the way back needs, such as "
            "a cache or a state; switch that off, of transformers by use_cache=False beside the inputs."
        ) from error


def drawn_gradient(output: Output, generator: torch.Generator) -> Tensor:
    """A random g with E gᵀ·g = the curvature of the output's divergence: what is to be sent back through the model.

    With random signs v, S v for a root S of that curvature. Of logits it is the Fisher information diag(p) − ppᵀ of the
    prediction (Martens 2014), whose root is S = diag(√p) − p√pᵀ. The gradient e_y − p of a label y that is drawn from p
    has the same second moment, but where a prediction is sure it is next to nothing for all but a few draws, and with
    them comes most of the moment. Of values f it is 2 / ‖f‖², so that half the form is the relative squared change.

    Args:
        output: what the model says.
        generator: on the CPU, whatever the output's device.

    Returns:
        The shape of `output.values`.

    Raises:
        CompressionError: the output is not finite.
    """
    values = output.values.detach()
    if not values.isfinite().all():
        raise CompressionError("the model's output is NaN or infinite; look at the data, and at the model.")
    # In bytes: of a large vocabulary a row has as many signs as it has classes.
    signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8).to(values) * 2 - 1
    if not output.are_logits:
        size = torch.linalg.vector_norm(values, dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        return 2**0.5 * signs / size
    probabilities = values.softmax(1)
    scaled = probabilities.sqrt() * signs
    return scaled - probabilities * scaled.sum(1, keepdim=True)


def divergence(original: Output, approximation: Output) -> Tensor:
    """How far predictions are from the original's, one number a row: see `metrics.outputs.output_divergence`.

    Raises:
        CompressionError: the shapes differ, as they do where the number of detections depends on what is seen.
    """
    if original.values.shape != approximation.values.shape:
        raise CompressionError(
            f"the output has the shape {tuple(original.values.shape)}, and that of the compressed model "
            f"{tuple(approximation.values.shape)}; such outputs cannot be compared. Hand over the part of the model in "
            "front of what picks detections, or for a plan pass trials=False."
        )
    before, after = original.values.double(), approximation.values.double()
    if original.are_logits:
        return kl_divergence(before, after).clamp(min=0)
    size = before.square().sum(1).clamp(min=torch.finfo(before.dtype).tiny)
    return (after - before).square().sum(1) / size


def kl_divergence(before: Tensor, after: Tensor) -> Tensor:
    """KL(softmax(before) ‖ softmax(after)) of logits, (rows, classes) each, one number a row; rounding may go below 0.

    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([0.1201])
    """
    first, second = before.log_softmax(1), after.log_softmax(1)
    return (first.exp() * (first - second)).sum(1)
