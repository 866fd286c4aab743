"""Muon: descent by orthogonal matrices, for the weights that are matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

_MOMENTUM = 0.95
_SIZE = 0.2  # the root mean square of a step at a learning rate of 1: about that of Adam's (Liu et al. 2025)
# By Jordan et al. 2024: singular values from a hundredth of the length on come near 1 in five iterations.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_WIDEST = 512  # shorter side of a matrix: with wider ones a step is mostly this, and they are not what is thin


class Muon(torch.optim.Optimizer):
    """Descent along momenta that are made orthogonal: U Vᵀ, nearly, of a momentum's SVD U S Vᵀ.

    So all directions of a matrix go equally far, where those of Adam and plain gradients are mostly the few in which
    the loss is steepest; the thin stages of a factorized layer, which have few directions, need every one. A kernel is
    the matrix (out, in · positions). A step has a root mean square of 0.2 · `lr` whatever the gradient's length.

    PyTorch has it from 2.9 on, for tensors of two axes.

    Sources: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; Liu et al. 2025, Muon is
    scalable for LLM training (the length of a step).

    Args:
        parameters: tensors of two axes or more, or groups of them, see `are_matrices`.
        lr: the learning rate.

    >>> weight = torch.nn.Parameter(torch.zeros(4, 6))
    >>> weight.grad = torch.diag(torch.tensor([1.0, 0.1, 0.01, 0.01])) @ torch.eye(4, 6)
    >>> Muon([weight], lr=1.0).step()
    >>> torch.linalg.svdvals(weight).max() / torch.linalg.svdvals(weight).min() < 2
    tensor(True)
    """

    def __init__(self, parameters: ParamsT, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, as of any optimizer of PyTorch."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(self._direction(parameter), alpha=group["lr"])
        return loss

    def _direction(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        ahead = momentum.lerp(parameter.grad, 1 - _MOMENTUM).flatten(1)  # as Nesterov has it
        return (_SIZE * max(ahead.shape) ** 0.5 * orthogonal(ahead)).view_as(parameter)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly U Vᵀ where the matrix is U S Vᵀ: a few Newton-Schulz iterations for an SVD; zeros stay zeros.

    >>> found = torch.linalg.svdvals(orthogonal(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.2, 0.0]])))
    >>> 0.6 < found.min() and found.max() < 1.3
    tensor(True)
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.mT if is_tall else matrix
    found = found / torch.linalg.vector_norm(found).clamp(min=torch.finfo(found.dtype).tiny)
    first, third, fifth = _QUINTIC
    for _ in range(_ITERATIONS):
        square = found @ found.mT
        square = torch.addmm(square, square, square, beta=third, alpha=fifth)
        found = torch.addmm(found, square, found, beta=first)
    return found.mT if is_tall else found


def are_matrices(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """The parameters that require a gradient, each with whether it is one to be made orthogonal.

    Those are weights of two rows and two columns or more, and not more than 512 of both, but for tables whose rows are
    looked up one by one. The kernels of a depthwise convolution are the rows of one.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            rows = len(parameter) if parameter.ndim else 1
            shorter = min(rows, parameter.numel() // max(rows, 1))
            yield parameter, 1 < shorter <= _WIDEST and id(parameter) not in tables
