"""Model + data -> what its output says of its layers' weights, in one pass forward and a few backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import Data, batches, evaluating, first_samples, forward, pieces, quickest, same_every_pass
from tdcompress.decompositions.options import check_count
from tdcompress.errors import CompressionError
from tdcompress.gathering import made_for, those_met
from tdcompress.layers.fisher import FisherFactors
from tdcompress.layers.kinds import reads_features
from tdcompress.outputs import Logits, Output, drawn_gradient, gradients_of, read_output
from tdcompress.progress import Progress, following
from tdcompress.surgery import LayerSelector, select_layers
from tdcompress.watching import Call, watching, with_tensors

_FEWEST = 4  # samples of the first forward, which shows what a sample takes
_MOST = 64  # samples of any
_BYTES = {"cpu": 96 << 20}  # of what a forward keeps for the backward passes
_ON_DEVICES = 2 << 30


def fisher_factors(
    model: nn.Module,
    data: Data,
    layer: LayerSelector | None = None,
    *,
    draws: int = 4,
    logits: Logits = None,
    seed: int = 0,
    joint: bool = True,
    progress: Progress = None,
) -> dict[str, FisherFactors]:
    """The factors A and G of the Fisher information of a model's layers, by which `predicted_loss` foresees a change.

    For a layer with inputs a and outputs W a at some positions, A = E[a aᵀ] is the second moment of its patches, and
    G = Σ E[g gᵀ], over the positions, that of the gradients that come back from a root of the Fisher information of the
    model's own prediction p, diag(p) − ppᵀ, times random signs. A change D of the weight then changes the predictions
    by a KL divergence of about ½ tr(G D A Dᵀ) (Martens and Grosse 2015; for convolutions Grosse and Martens 2016). No
    label is looked at, and none is drawn. For outputs that are no logits it is the relative squared change, by Gauss
    and Newton.

    One pass forward for all layers, in evaluation mode, and one backward a draw, to the features alone. Large batches
    are taken in pieces, so that memory depends neither on them nor on how many there are: the factors, (in_channels ·
    positions in the kernel)² + out_channels² numbers a layer, and one piece. The model is left as it was.

    Args:
        model: the model before it is compressed.
        data: batches of inputs, as for `approximation_errors`; what stands beside them is not looked at.
        layer: which layers, as for `decompose`; all but embeddings by default.
        draws: of signs for every prediction.
        logits: what the output is, see `approximation_errors`.
        seed: what signs are drawn from.
        joint: keep the second moment of whole patches; without it that of channels times that of positions in the
            kernel stands for it, which takes (positions in the kernel)² times less.
        progress: as for `decompose`; a piece is a batch.

    Returns:
        `{layer name: factors}`.

    Raises:
        CompressionError: there is no such layer, an embedding is named, the forward never reaches a layer that is
            named, or the output does not depend on it or cannot be read; the data is empty or not finite; a factor
            would be too large.

    >>> import tdcompress as td
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 10))
    >>> factors = td.fisher_factors(model, torch.randn(8, 3, 6, 6))
    >>> small = td.decompose(model, "2", method="tucker", ratio=0.8)
    >>> sorted(factors), factors["2"].loss_between(model[2], small[2]) > 0
    (['0', '2', '4'], True)
    """
    check_count("draws", draws, least=1)
    selected = select_layers(model, layer, linear=True)
    layers = {name: module for name, module in selected if layer is not None or reads_features(module)}
    if not layers:
        return {}
    factors_of = made_for(layers, lambda spec: FisherFactors(spec, joint=joint))
    watched = _Watched(model, layers, factors_of, logits, draws, torch.Generator().manual_seed(seed))
    inputs = batches(data)
    total = len(inputs) if isinstance(inputs, Sized) else 0
    with evaluating(model), _frozen(model):
        if same_every_pass(inputs):
            inputs = quickest(inputs, model)
        most = 0
        with following(progress, total, "output factors") as step:
            for batch in inputs:
                most = most or watched.affordable(batch)
                for piece in pieces(batch, most):
                    watched.observe(piece)
                step("")
    why = ", or its output does not depend on them"
    return those_met(factors_of, lambda factors: factors.complete, named=layer is not None, why=why)


@dataclass(frozen=True)
class _Watched:
    """A model whose layers are watched forward and backward."""

    model: nn.Module
    layers: Mapping[str, nn.Module]
    factors_of: Mapping[str, FisherFactors]
    logits: Logits
    draws: int
    generator: torch.Generator

    def affordable(self, batch: Any) -> int:
        """How many samples may be taken at a time, by what a forward of the first few keeps for going back."""
        few, count = first_samples(batch, _FEWEST)
        owned = {parameter.data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in owned:
                kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        leaves: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = self._forward(few, lambda name, call: None, leaves)
        device = output.values.device.type
        most = _BYTES.get(device, _ON_DEVICES) * count // max(1, sum(kept.values()))
        return max(1, min(most, _MOST))

    def observe(self, piece: Any) -> None:
        """One pass forward, and one backward for every draw."""

        def note(name: str, call: Call) -> None:
            self.factors_of[name].update_inputs(call.input)

        leaves: list[Tensor] = []
        output = self._forward(piece, note, leaves)
        if not leaves:
            return
        for draw in range(self.draws):
            sent = drawn_gradient(output, self.generator)
            # Only the features' gradients are wanted, which the hooks take.
            gradients_of(output.values, leaves, sent, again=draw + 1 < self.draws)
        for factors in self.factors_of.values():
            factors.rows += len(output) * self.draws

    def _forward(self, batch: Any, note: Callable[[str, Call], None], leaves: list[Tensor]) -> Output:
        """The output for a batch; the features have a graph from the first layer on."""

        def watch(name: str, call: Call) -> Any:
            note(name, call)
            features, answer = call.first_output, None
            if not features.requires_grad:
                start = features.detach().requires_grad_()
                leaves.append(start)
                # What comes next may overwrite its input, and may not overwrite where a graph starts.
                answer = with_tensors(call.output, lambda one: start.clone() if one is features else one)
                features = start
            features.register_hook(partial(self._take, name))  # type: ignore[no-untyped-call]
            return answer

        with torch.enable_grad(), watching(self.layers, watch):
            return read_output(forward(self.model, batch), self.logits)

    def _take(self, name: str, gradients: Tensor) -> None:
        try:
            self.factors_of[name].update_gradients(gradients)
        except CompressionError as error:
            raise error.at(name) from None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients inside the block: only those of features are computed, and kept for."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
