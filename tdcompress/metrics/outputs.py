"""Errors of the outputs: by how much the predictions of the model change if this one layer is replaced."""

from __future__ import annotations

from torch import Tensor, nn

from tdcompress.layers.fisher import FisherFactors
from tdcompress.metrics.registry import register_metric
from tdcompress.outputs import Output, divergence


@register_metric("output_divergence", on="outputs")
def output_divergence(original: Output, approximation: Output) -> Tensor:
    """KL(p ‖ p̃) of every prediction, in nats; for outputs f that are no logits ‖f − f̃‖² / ‖f‖² of every sample.

    Measured, with this one layer replaced and every other one the original's: exact for the data, and with an error of
    its own for the inputs to come. It costs a forward of what comes from the layer on.

    >>> import torch
    >>> before, after = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    >>> round(float(output_divergence(Output(before, True), Output(after, True))), 4)
    3.807
    >>> float(output_divergence(Output(torch.ones(1, 2), False), Output(torch.zeros(1, 2), False)))
    1.0
    """
    return divergence(original, approximation)


@register_metric("predicted_loss", on="outputs", foreseen=True, version=2)
def predicted_loss(original: nn.Module, approximation: nn.Module, factors: FisherFactors) -> float:
    """½ tr(G ΔW A ΔWᵀ), what `output_divergence` is foreseen to be, without running the compressed model.

    A = E[a aᵀ] is the second moment of the patches that the layer sees, G = Σ E[g gᵀ], over the positions, that of the
    gradients of a prediction, see `fisher_factors`. If the bias changes, it is one more column of W, whose input is 1.

    It is the second order of the divergence, so right for small changes and misleading for large ones; and it takes A
    and G for independent, positions for uncorrelated (the Kronecker-factored Fisher information: Martens and Grosse
    2015, Grosse and Martens 2016) and groups for unrelated. Exact up to third order, and but for the draws of signs,
    where the layer has one position and one group, and all samples the same inputs or the same second moment of the
    gradients. One pass over the data serves all layers and all their approximations, each of which costs
    out · (in · positions in the kernel)² multiply-adds. The change of a transposed layer's bias is not counted.

    >>> import torch
    >>> from tdcompress.layers import ConvSpec
    >>> before, after = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    >>> _ = nn.init.ones_(before.weight), nn.init.zeros_(after.weight)
    >>> factors = FisherFactors(ConvSpec.of(before))
    >>> factors.update_inputs(torch.ones(3, 3))
    >>> factors.update_gradients(torch.ones(3, 2))
    >>> factors.rows = 3
    >>> predicted_loss(before, after, factors)
    18.0
    """
    return factors.loss_between(original, approximation)
