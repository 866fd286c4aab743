"""A training that a kill does not lose: its whole state in one file, from which it goes on bit for bit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.paper.evaluation import Performance
from tdcompress.errors import CompressionError

SECONDS = 60.0  # between two savings within an epoch
_NOTES = "training"  # the name of the notes in the file's header


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training part gave.

    Attributes:
        train_loss: mean cross entropy of the training labels, each at the time of its step, in nats.
        validation: on the validation part, after the pass.
        learning_rate: at the beginning of the pass.
        seconds: wall time, validation included.
    """

    train_loss: float
    validation: Performance
    learning_rate: float
    seconds: float


@dataclass
class State:
    """How far a training is, besides the weights and the optimizer.

    Attributes:
        epochs: those that ended.
        best: index of the best of them.
        best_weights: the network's after that one, by name.
        drawing: the state of the generator at the beginning of the epoch that is under way.
        steps: how many steps of that epoch have been made.
        loss: the sum of its losses, each times its samples.
        seen: how many samples these were.
        seconds: that it has taken so far.
    """

    drawing: Tensor
    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    loss: float = 0.0
    seen: int = 0
    seconds: float = 0.0


def save_whole(tensors: Mapping[str, Tensor], file: str | Path, notes: Mapping[str, str]) -> None:
    """Write a safetensors file in one step: whoever kills the process meanwhile leaves what was there before.

    Args:
        tensors: by name, on any device and in any memory format.
        file: where; its folder is made if it is missing.
        notes: kept in the file's header.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}")  # of one name, so that a kill leaves one at most
    try:
        kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(kept, beside, metadata=dict(notes))
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)


class Keeper:
    """Keeps a training in a safetensors file, which is replaced in one step.

    Args:
        file: where; its folder is made if it is missing.
        about: what the training depends on; a file about another one is refused.
        every: seconds between two savings.
    """

    def __init__(self, file: str | Path, about: str, every: float = SECONDS) -> None:
        self._file, self._about, self._every = Path(file), about, every
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._last >= self._every

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Write everything, with `save_whole`."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
        tensors |= {f"optimizer.{name}": value for name, value in _flat(optimizer.state_dict()["state"])}
        tensors["drawing"] = state.drawing
        numbers = {name: getattr(state, name) for name in ("best", "steps", "loss", "seen", "seconds")}
        notes = {"about": self._about, "epochs": [asdict(epoch) for epoch in state.epochs], **numbers}
        save_whole(tensors, self._file, {_NOTES: json.dumps(notes)})
        self._last = time.monotonic()

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
        """Put model and optimizer where the training was; None if there is no file.

        Raises:
            CompressionError: the file is of another training, or is no such file.
        """
        if not self._file.exists():
            return None
        try:
            with safetensors.safe_open(self._file, framework="pt") as opened:
                notes = json.loads((opened.metadata() or {})[_NOTES])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise CompressionError(f"{self._file}: holds no training that could go on ({error!r}); delete it") from None
        if notes.pop("about") != self._about:
            raise CompressionError(f"{self._file}: is of another training; delete it, or name another file")
        model.load_state_dict(_under("model", tensors))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": _nested(_under("optimizer", tensors), model)})
        epochs = [Epoch(**{**one, "validation": Performance(**one["validation"])}) for one in notes.pop("epochs")]
        return State(tensors["drawing"], epochs, best_weights=_under("best", tensors), **notes)


def _under(group: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{group}."): value for name, value in tensors.items() if name.startswith(f"{group}.")}


def _flat(state: Mapping[int, Mapping[str, Tensor | None]]) -> Iterator[tuple[str, Tensor]]:
    """What an optimizer keeps of each parameter, by number and name."""
    for number, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield f"{number}.{name}", value


def _nested(flat: Mapping[str, Tensor], model: nn.Module) -> dict[int, dict[str, Tensor]]:
    """The inverse of `_flat`, in the memory format of the parameters, which the steps are fastest in."""
    parameters = list(model.parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        number, name = key.split(".", 1)
        like = parameters[int(number)].detach()
        of_its_shape = value.shape == like.shape
        state.setdefault(int(number), {})[name] = torch.empty_like(like).copy_(value) if of_its_shape else value
    return state
