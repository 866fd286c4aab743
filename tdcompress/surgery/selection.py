"""Which layers a name, a glob, a list of those or a predicate means."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import nn

from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.kinds import kind_of
from tdcompress.methods import taking_matrices

LayerSelector = str | Sequence[str] | Callable[[str, nn.Module], bool]
Named = tuple[str, nn.Module]


def select_layers(model: nn.Module, layer: LayerSelector | None, *, linear: bool = False) -> list[Named]:
    """The layers to factorize that `layer` means, by name, each once.

    A name may mean any module that is not factorized yet. Globs and predicates pick layers of the known kinds, and
    subclasses and parametrized ones with them, so that none is passed over in silence.

    Args:
        model: where to look.
        layer: see `decompose`; None for all.
        linear: whether globs and predicates pick layers whose weight is a matrix too: linear layers and embeddings.

    Raises:
        CompressionError: a name does not exist (close ones are suggested), or nothing is matched.
    """
    noun = "convolution, linear layer or embedding" if linear else "convolution"
    candidates = list(dense_layers(model, linear))
    try:
        selected = _select(model, layer, noun, candidates)
    except CompressionError as error:
        matrices = 0 if candidates or linear else len(list(dense_layers(model, linear=True)))
        if not matrices:
            raise
        known = ", ".join(map(repr, taking_matrices()))
        hint = f"Its {matrices} layers with a matrix, such as linear ones, are for a method that takes them: {known}."
        raise CompressionError(f"{error} {hint}") from None
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, _ in selected:
        _check_not_factorized(name, modules)
    return selected


def select_factorized(model: nn.Module, layer: LayerSelector | None) -> list[tuple[str, FactorizedConv]]:
    """The factorized layers that `layer` means, by name, each once; all of them for None.

    Raises:
        CompressionError: a name does not exist or its layer is not factorized, or nothing is matched.
    """
    factorized = [(name, module) for name, module in model.named_modules() if isinstance(module, FactorizedConv)]
    selected = _select(model, layer, "factorized layer", factorized)
    for name, module in selected:
        if not isinstance(module, FactorizedConv):
            raise CompressionError(
                f"layer {name!r}: {type(module).__name__} is not factorized; {_listed(factorized)} are."
            )
    return selected  # type: ignore[return-value]


def _select(model: nn.Module, layer: LayerSelector | None, noun: str, candidates: Sequence[Named]) -> list[Named]:
    if layer is None:
        if not candidates:
            raise CompressionError(f"there is no {noun} in the model.")
        return list(candidates)
    check_selector(layer, candidates)
    if callable(layer):
        chosen = [(name, module) for name, module in candidates if layer(name, module)]
        if not chosen:
            raise CompressionError(f"the predicate picks no {noun}; there are {_listed(candidates)}.")
        return chosen
    wanted = [layer] if isinstance(layer, str) else list(layer)
    if not wanted:
        raise CompressionError(f"no layer was named; there are {_listed(candidates)}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    selected = {
        id(module): (name, module) for text in wanted for name, module in _named(modules, text, noun, candidates)
    }
    return list(selected.values())


def check_selector(layer: object, candidates: Sequence[Named]) -> None:
    """Refuse what selects nothing, with what there is.

    Raises:
        CompressionError: it is no name, list or predicate.
    """
    if isinstance(layer, nn.Module) or not isinstance(layer, str | Iterable | Callable):
        raise CompressionError(
            f"layer must be a name, a glob, a list of those, or a predicate, got a {type(layer).__name__}; "
            f"there are {_listed(candidates)}."
        )


def _named(modules: Mapping[str, nn.Module], text: str, noun: str, candidates: Sequence[Named]) -> list[Named]:
    _check_text(text, "layer")
    if text in modules:
        return [(text, modules[text])]
    if any(sign in text for sign in "*?["):
        matching = [(name, module) for name, module in candidates if fnmatch.fnmatchcase(name, text)]
        if matching:
            return matching
        raise CompressionError(f"the glob {text!r} matches no {noun}; there are {_listed(candidates)}.")
    raise _nowhere(text, modules, candidates)


def names_of(modules: Mapping[str, nn.Module], wanted: LayerSelector, argument: str) -> list[str]:
    """The names of all modules, layers or not, that a name, a glob or a list of those means.

    Args:
        modules: by all their names.
        wanted: what is meant; no predicate.
        argument: what an error calls it.

    Raises:
        CompressionError: a name does not exist (close ones are suggested), or a glob matches nothing.
    """
    if isinstance(wanted, nn.Module) or not isinstance(wanted, Iterable):
        raise CompressionError(
            f"{argument}= takes a name, a glob, a list of those, or a predicate, got a {type(wanted).__name__}."
        )
    names: list[str] = []
    for text in [wanted] if isinstance(wanted, str) else wanted:
        _check_text(text, argument)
        matched = [text] if text in modules else [name for name in modules if fnmatch.fnmatchcase(name, text)]
        if not matched:
            # The outermost are those that one skips: a head, an encoder.
            outermost = [one for one in modules.items() if one[0] and "." not in one[0]]
            raise CompressionError(f"{argument}=: {_nowhere(text, modules, outermost)}")
        names += matched
    return names


def _check_text(text: object, argument: str) -> None:
    if not isinstance(text, str):
        raise CompressionError(f"{argument}= lists names and globs, got a {type(text).__name__}, {text!r}.")


def _nowhere(text: str, modules: Mapping[str, nn.Module], candidates: Sequence[Named]) -> CompressionError:
    close = difflib.get_close_matches(text, modules, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {_listed(candidates)}."
    return CompressionError(f"the model has no layer {text!r}; {hint}")


def ancestors(name: str) -> list[str]:
    """The names of the modules around a layer and of the layer, the model's own `""` first.

    >>> ancestors("layer1.0.conv")
    ['', 'layer1', 'layer1.0', 'layer1.0.conv']
    """
    path = name.split(".") if name else []
    return [".".join(path[:length]) for length in range(len(path) + 1)]


def _check_not_factorized(name: str, modules: Mapping[str, nn.Module]) -> None:
    for outer in ancestors(name):
        if isinstance(modules[outer], FactorizedConv):
            inside = "" if outer == name else f"is a stage of {outer!r}, which "
            raise CompressionError(
                f"layer {name!r}: {inside}is factorized already ({type(modules[outer]).__name__}); td.restore() it "
                "first, or decompose the original model."
            )


def dense_layers(model: nn.Module, linear: bool) -> Iterator[Named]:
    """Every convolution, and on demand what has a matrix, but for the stages of those that are factorized already."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, FactorizedConv):
            inside.update(id(stage) for stage in module.modules())
        elif id(module) not in inside and kind_of(module) and (linear or not ConvSpec.read(module).is_matrix):
            yield name, module


def other_holders(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Name, class and number of elements of modules of no known kind that hold matrices or larger tensors themselves.

    An `nn.LSTM` does, and a mixture's experts in one tensor. What a known layer has as well is not counted.
    """
    seen: set[int] = set()  # modules inside of known layers, and parameters
    for module in model.modules():
        if isinstance(module, FactorizedConv) or kind_of(module):
            seen.update(id(inner) for inner in module.modules())
            seen.update(id(parameter) for parameter in module.parameters())
    for name, module in model.named_modules():
        own = [] if id(module) in seen else list(module.parameters(recurse=False))
        held = [one for one in own if one.dim() > 1 and id(one) not in seen]
        seen.update(map(id, held))
        if held:
            yield name, type(module).__name__, sum(one.numel() for one in held)


def _listed(candidates: Sequence[Named]) -> str:
    return listed([name for name, _ in candidates]) or "none in it"


def listed(names: Sequence[str], at_most: int = 8) -> str:
    """The first names, and how many more there are.

    >>> listed(["conv1", "conv2", "conv3"], at_most=2)
    "'conv1', 'conv2' and 1 more"
    """
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + more
