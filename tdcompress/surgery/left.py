"""What a call for many layers leaves dense: what it is told to, and what is refused; and what the model says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from torch import nn

from tdcompress.errors import CompressionError, naming
from tdcompress.surgery.selection import LayerSelector, Named, listed, names_of

OnRefusal = Literal["raise", "skip"]

_ATTRIBUTE = "tdcompress_left_dense"
_SKIPPED = "skipped, as asked."
_FEW = 5  # names of one reason, and reasons, that a message has


def without(
    model: nn.Module, selected: Sequence[Named], skip: LayerSelector | None
) -> tuple[list[Named], dict[str, str]]:
    """The layers that remain of those selected, and why the others do not, by name.

    A name or a glob means every module of that name with all that is in it; a predicate is asked about the selected
    layers.

    Raises:
        CompressionError: a name does not exist, a glob matches nothing, or nothing remains.
    """
    if skip is None:
        return list(selected), {}
    if callable(skip) and not isinstance(skip, nn.Module):
        skipped = {id(module) for name, module in selected if skip(name, module)}
    else:
        modules = dict(model.named_modules(remove_duplicate=False))
        named = names_of(modules, skip, "skip")
        skipped = {id(inner) for name in named for inner in modules[name].modules()}
    remaining = [(name, module) for name, module in selected if id(module) not in skipped]
    if not remaining:
        raise CompressionError(
            f"skip= leaves nothing to do: it means every layer, {listed([name for name, _ in selected])}."
        )
    return remaining, {name: _SKIPPED for name, module in selected if id(module) in skipped}


class Refusals:
    """The layers that cannot be done.

    Args:
        on_refusal: what to do with them: `"raise"` the first, or `"skip"` them.

    Attributes:
        reasons: the errors, without the layer's name, by that name.
        noted: where `solved` shall note further ones; None if it shall raise them.
    """

    def __init__(self, on_refusal: OnRefusal) -> None:
        if on_refusal not in ("raise", "skip"):
            raise CompressionError(f"on_refusal must be 'raise' or 'skip', got {on_refusal!r}.")
        self.reasons: dict[str, CompressionError] = {}
        self.noted = self.reasons if on_refusal == "skip" else None

    @contextmanager
    def of(self, layer: str) -> Iterator[None]:
        """A block that is about one layer; what it refuses is noted, and raised by `settle`."""
        with naming(layer):
            try:
                yield
            except CompressionError as error:
                self.reasons[layer] = error

    def settle(self, layers: int) -> None:
        """Raise the first that was noted, unless refused layers are skipped.

        Args:
            layers: of how many layers they are; where others can be done, the error says how to leave these.

        Raises:
            CompressionError: there is one.
        """
        if self.noted is None and self.reasons:
            first = next(iter(self.reasons))
            error, count = self.reasons[first].at(first), len(self.reasons)
            if count < layers:
                what = "is refused; to leave it" if count == 1 else "are refused; to leave them"
                error = CompressionError(f"{error} {count} of {layers} layers {what} dense, pass on_refusal='skip'.")
            raise error

    def remaining(self, layers: Sequence[Named]) -> list[Named]:
        """The layers that are not refused.

        Raises:
            CompressionError: see `settle`, or none remain.
        """
        self.settle(len(layers))
        remaining = [(name, module) for name, module in layers if name not in self.reasons]
        if not remaining:
            if len(self.reasons) == 1:
                ((name, error),) = self.reasons.items()
                raise error.at(name)
            raise CompressionError("no layer can be decomposed.\n" + "\n".join(grouped(self.texts, at_most=_FEW)))
        return remaining

    @property
    def texts(self) -> dict[str, str]:
        """The reasons as text, by the layers' names."""
        return {name: str(error) for name, error in self.reasons.items()}


def grouped(reasons: Mapping[str, str], at_most: int | None = None) -> list[str]:
    """A line for every reason, with the layers that it is about.

    >>> grouped({"head": "it is skipped.", "conv1": "it is small.", "conv2": "it is small."})
    ["'head': it is skipped.", "'conv1', 'conv2': it is small."]
    """
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    lines = [f"{listed(names, at_most=_FEW)}: {reason}" for reason, names in layers.items()]
    if at_most is not None and len(lines) > at_most:
        lines[at_most:] = [f"… and {len(lines) - at_most} more reasons; td.refusals(model, …) has them all."]
    return lines


def left_lines(left: Mapping[str, str]) -> list[str]:
    """What tables and messages say of the layers that were left dense.

    >>> left_lines({"head": "it is skipped."})
    ["left dense: 'head': it is skipped."]
    """
    return [f"left dense: {line}" for line in grouped(left)]


# --- on the model ---------------------------------------------------------------------------------------


def left_dense(model: nn.Module) -> dict[str, str]:
    """The layers that `decompose` was asked for and left as they are, and why, by name.

    It is kept in an attribute of the module that `decompose` was given, which may be a part of this one.
    """
    return {
        ".".join(filter(None, (outer, name))): reason
        for outer, module in model.named_modules()
        for name, reason in vars(module).get(_ATTRIBUTE, {}).items()
    }


def keep_left(model: nn.Module, left: Mapping[str, str], undo: ExitStack) -> None:
    """Let `left` be what `left_dense` says of the model; `undo` puts back what it said."""
    for module in model.modules():
        if _ATTRIBUTE in vars(module):
            undo.callback(vars(module).__setitem__, _ATTRIBUTE, vars(module)[_ATTRIBUTE])
            del vars(module)[_ATTRIBUTE]
    if left:
        undo.callback(vars(model).pop, _ATTRIBUTE, None)
        vars(model)[_ATTRIBUTE] = dict(left)
