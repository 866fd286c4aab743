"""One step of training: forward, loss, backward, update. Op by op, compiled, or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from examples.paper.evaluation import cross_entropy
from examples.paper.recipes import Recipe
from tdcompress.errors import CompressionError

Step = Callable[[Tensor, Tensor], Tensor]  # images, labels -> mean loss, detached
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, logits, labels -> mean loss
_WARM_UP = 3  # passes before a capture, in which libraries choose their kernels and reserve their memory


def labelled(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy of the labels, in nats; see `cross_entropy` for the shapes."""
    return cross_entropy(logits, labels)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    device: torch.device,
    objective: Objective = labelled,
) -> Step:
    """The step that a recipe asks for.

    Args:
        model: in training mode when the step is called.
        optimizer: of the model's parameters.
        recipe: `step` and `autocast` count.
        device: where the model is.
        objective: what is made small.

    Raises:
        CompressionError: a CUDA graph was asked for, and the model is elsewhere.
    """
    kind = recipe.step
    if kind == "auto":
        kind = "graph" if device.type == "cuda" else "eager"
    if kind == "graph":
        if device.type != "cuda":
            raise CompressionError(f"a CUDA graph needs a CUDA device, not {device}; use step='eager'")
        return GraphedStep(model, optimizer, recipe.autocast, objective)
    if kind == "compiled":
        torch.compiler.reset()  # every compressed network is another one, and compiled code is kept by class
        return EagerStep(torch.compile(model), optimizer, device, recipe.autocast, objective)
    return EagerStep(model, optimizer, device, recipe.autocast, objective)


class EagerStep:
    """A step, op by op.

    Args:
        model: gives logits for images or texts; compiled or not.
        optimizer: of its parameters.
        device: where it is.
        autocast: forward in bfloat16 where PyTorch's autocast does.
        objective: what is made small.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        autocast: bool,
        objective: Objective = labelled,
    ) -> None:
        self._model, self._optimizer, self._device, self._autocast = model, optimizer, device, autocast
        self._objective = objective

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Update the weights; the loss is that before the update."""
        with torch.autocast(self._device.type, torch.bfloat16, self._autocast):
            logits = self._model(images)
        loss = self._objective(images, logits, labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class GraphedStep:
    """A step whose forward and backward pass are one launch: small networks wait for launches, not for arithmetic.

    The passes are captured for the first batch's shape; a batch of another size, at an epoch's end, runs op by op.
    The update is not in the graph, so that the learning rate may change.

    Args:
        model: on a CUDA device, without anything that needs the CPU inside.
        optimizer: of its parameters.
        autocast: forward in bfloat16 where PyTorch's autocast does.
        objective: what is made small; without anything that needs the CPU, too.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, autocast: bool, objective: Objective = labelled
    ) -> None:
        self._model, self._optimizer, self._autocast, self._objective = model, optimizer, autocast, objective
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Update the weights; the loss is that before the update."""
        if self._graph is None:
            self._capture(images, labels)
        if images.shape == self._images.shape:
            self._images.copy_(images)
            self._labels.copy_(labels)
            assert self._graph is not None
            self._graph.replay()
            loss = self._loss.clone()
        else:
            loss = self._loss_of(images, labels)
            _into(self._parameters, torch.autograd.grad(loss, self._parameters))
            loss = loss.detach()
        self._optimizer.step()
        return loss

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        buffers = [buffer.clone() for buffer in self._model.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._optimizer.zero_grad(set_to_none=True)
                self._loss_of(self._images, self._labels).backward()
        torch.cuda.current_stream().wait_stream(stream)
        # Without gradients the backward pass makes its own inside the graph, and writes those in every replay.
        self._optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._loss_of(self._images, self._labels)
            self._loss.backward()
        self._loss = self._loss.detach()
        with torch.no_grad():
            for buffer, before in zip(self._model.buffers(), buffers, strict=True):
                buffer.copy_(before)  # the passes so far have moved BatchNorm's statistics

    def _loss_of(self, images: Tensor, labels: Tensor) -> Tensor:
        # A cache of casts would be filled outside the graph and be gone when it is replayed.
        with torch.autocast("cuda", torch.bfloat16, self._autocast, cache_enabled=False):
            logits = self._model(images)
        return self._objective(images, logits, labels)


def _into(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Copy gradients to where the graph writes them; new ones would leave the graph without a reader."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(gradient)
