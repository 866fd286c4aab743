"""Data, in pieces to train on and pieces to judge by, and what the original says to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tdcompress.batches import (
    Data,
    channels_last,
    channels_last_copy,
    forward,
    pieces,
    quicker_channels_last,
    repeatable,
    same_every_pass,
    samples_in,
)
from tdcompress.errors import CompressionError
from tdcompress.outputs import Logits, Output, read_output
from tdcompress.watching import Call, tensors_of, watching

_BYTES = 128 << 20  # of what the original says that is kept
_MOST_HELD_OUT = 1024  # samples

Key = int | None  # of a piece that is the same in every pass; None of one that is not


@dataclass(frozen=True)
class Lessons:
    """The pieces to train on, to be gone through in their order or in random order, and those to judge by.

    Attributes:
        held_out: pieces that are not trained on.
        steps: pieces in a pass.
        in_order: the pieces to train on, as they were given; a list if they are the same in every pass.
        drawn: these in random order, each with a key if it is the same in every pass.
        channels_last: whether images are to lie so.
    """

    held_out: Sequence[Any]
    steps: int
    in_order: Iterable[Any]
    drawn: Callable[[torch.Generator], Iterator[tuple[Key, Any]]]
    channels_last: bool = False

    def shuffled(self, generator: torch.Generator) -> Iterator[tuple[Key, Any]]:
        """A pass in random order, each piece with a key if it is the same in every pass."""
        for key, piece in self.drawn(generator):
            yield key, channels_last(piece) if self.channels_last else piece

    def laid_out(self, *models: nn.Module) -> Lessons:
        """The same in the memory format in which these models run quicker, see `batches.quickest`."""
        if not quicker_channels_last(self.held_out[0], *models):
            return self
        return replace(self, held_out=[channels_last(piece) for piece in self.held_out], channels_last=True)

    def suited(self, model: nn.Module) -> nn.Module:
        """The model itself, or a copy that lies as the images do."""
        return channels_last_copy(model, self.held_out[0]) if self.channels_last else model


def divided(data: Data, size: int, share: float, generator: torch.Generator) -> Lessons:
    """Cut batches into pieces of at most `size` samples, and hold some of them out.

    Of a list or a tensor those that are held out are drawn. Of what may be another thing in every pass, such as a
    `DataLoader`, every so many-th batch is, up to 1 024 samples, which stay in memory.

    Raises:
        CompressionError: the data is spent after one pass, or there is too little of it to hold some out.
    """
    inputs = repeatable([data] if isinstance(data, Tensor) else data)
    if same_every_pass(inputs):
        return _of_list(list(inputs), size, share, generator)
    return _of_stream(inputs, size, share)


def _of_list(batches: Sequence[Any], size: int, share: float, generator: torch.Generator) -> Lessons:
    count = sum(map(samples_in, batches))
    least = max(1, round(share * count))  # to be held out
    parts = [_input(piece) for batch in batches for piece in pieces(batch, min(size, max(1, count - least)))]
    order = torch.randperm(len(parts), generator=generator).tolist()
    held, samples = 0, 0
    while samples < least and held < len(parts):
        samples += samples_in(parts[order[held]])
        held += 1
    held_out, rest = order[:held], sorted(order[held:])
    if not rest and held > 1:
        rest = [held_out.pop()]
    _check(held_out, rest)

    trained = [parts[number] for number in rest]

    def drawn(generator: torch.Generator) -> Iterator[tuple[Key, Any]]:
        return ((number, trained[number]) for number in torch.randperm(len(trained), generator=generator).tolist())

    return Lessons([parts[number] for number in sorted(held_out)], len(trained), trained, drawn)


def _of_stream(inputs: Iterable[Any], size: int, share: float) -> Lessons:
    every = max(2, round(1 / share))
    held: dict[int, list[Any]] = {}
    counts: list[int] = []
    samples, last = 0, []
    for number, batch in enumerate(inputs):
        last = [_input(piece) for piece in pieces(batch, size)]
        counts.append(len(last))
        if number % every == every - 1 and samples < _MOST_HELD_OUT:
            held[number] = last
            samples += sum(map(samples_in, last))
    if not held and len(counts) > 1:
        held[len(counts) - 1] = last
    _check(held, [number for number in range(len(counts)) if number not in held])
    rest = _Rest(inputs, frozenset(held), size)

    def drawn(generator: torch.Generator) -> Iterator[tuple[Key, Any]]:
        for parts in rest.by_batch():
            yield from ((None, parts[place]) for place in torch.randperm(len(parts), generator=generator).tolist())

    steps = sum(count for number, count in enumerate(counts) if number not in held)
    return Lessons([piece for parts in held.values() for piece in parts], steps, rest, drawn)


@dataclass(frozen=True)
class _Rest(Iterable[Any]):
    """The pieces of all batches but those of some numbers, read anew in every pass."""

    batches: Iterable[Any]
    without: frozenset[int]
    size: int

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.by_batch())

    def by_batch(self) -> Iterator[list[Any]]:
        for number, batch in enumerate(self.batches):
            if number not in self.without:
                yield [_input(piece) for piece in pieces(batch, self.size)]


def _check(held_out: Any, rest: Any) -> None:
    if not held_out or not rest:
        raise CompressionError(
            "the data is too little to train on some of it and to judge by the rest; pass two samples or more as a "
            "tensor, or two batches or more."
        )


def _input(piece: Any) -> Any:
    """Without what stands beside the input."""
    return piece[0] if isinstance(piece, Sequence) and piece and isinstance(piece[0], Tensor) else piece


@dataclass(frozen=True)
class Said:
    """What a model says to a batch.

    Attributes:
        output: what it returns.
        features: what chosen modules answer, by name, in the order of the calls.
    """

    output: Output
    features: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """What its tensors take."""
        tensors = tensors_of((self.output.values, list(self.features.values())))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Listener:
    """Runs models, and hears what they say.

    Attributes:
        features: names of the modules whose answers are heard.
        logits: what outputs are.
        autocast: in bfloat16 where PyTorch's autocast computes so.
    """

    features: Sequence[str]
    logits: Logits
    autocast: bool

    def hear(self, model: nn.Module, batch: Any) -> Said:
        """Run a model on a batch; features are copies that nothing overwrites, with a graph if gradients are on."""
        features: dict[str, list[Tensor]] = {name: [] for name in self.features}

        def note(name: str, call: Call) -> None:
            features[name].append(call.first_output.clone())

        with watching({name: model.get_submodule(name) for name in self.features}, note), self._precision(batch):
            result = forward(model, batch)
        return Said(read_output(result, self.logits), features)

    @contextmanager
    def _precision(self, batch: Any) -> Iterator[None]:
        devices = {tensor.device.type for tensor in tensors_of(batch)}
        with torch.autocast(devices.pop() if devices else "cpu", torch.bfloat16, enabled=self.autocast):
            yield


class Teacher:
    """The original, asked about batches; what it says to pieces that come again is kept where that fits into memory.

    Args:
        model: in evaluation mode.
        listener: how it is run.
    """

    def __init__(self, model: nn.Module, listener: Listener) -> None:
        self._model, self._listener = model, listener
        self._kept: dict[Key, Said] = {}
        self._bytes = 0

    def says(self, batch: Any, key: Key = None) -> Said:
        """What it says to a batch.

        Raises:
            CompressionError: that is not finite.
        """
        if key is not None and key in self._kept:
            return self._kept[key]
        with torch.no_grad():
            said = self._listener.hear(self._model, batch)
        if not said.output.values.isfinite().all():
            raise CompressionError(
                "what the original says is NaN or infinite; look for that in the data, and in the model."
            )
        if key is not None and self._bytes + said.nbytes <= _BYTES:
            self._kept[key] = said
            self._bytes += said.nbytes
        return said
