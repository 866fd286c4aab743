"""Model + layer names -> model with those layers factorized."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tdcompress.decompositions import Solver
from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.layers.spec import is_convolution
from tdcompress.methods import get_method

LayerSelector = str | Sequence[str] | Callable[[str, nn.Module], bool]


def decompose(
    model: nn.Module,
    layer: LayerSelector,
    method: str = "tucker",
    ratio: float | None = None,
    *,
    rank: int | Sequence[int] | str | None = None,
    solver: Solver = None,
    inplace: bool = False,
    seed: int | torch.Generator = 0,
) -> nn.Module:
    """Replace convolutions of a model by factorized ones.

    All or nothing: if one of several layers cannot be replaced, the model is as it was. Every layer draws
    its random start from a numeric seed anew, so it does not matter which others are decomposed with it.

    Args:
        model: any module. It is left alone unless `inplace`; the new one shares no memory with it.
        layer: a name as in `model.named_modules()` (`""` is the model itself, for a model that is one
            convolution), a glob such as `"layer4.*"`, a list of those, or a predicate on name and module.
            Globs and predicates pick the convolutions among what they match.
        method: `"cp"`, `"tucker"`, `"tt"`, or a registered one.
        ratio: the share of each layer's weight parameters to remove, in (0, 1): `ratio=0.9` keeps at most
            a tenth. What was reached is the new layer's `ratio`.
        rank: an exact rank instead: a number for CP, (out, in) for Tucker, the inner ranks along
            (in, *spatial, out) for TT. Or `"tensorly-torch"` together with a ratio, for the ranks that
            tensorly-torch and the paper would take.
        solver: None for the method's defaults, its options (`CPOptions`, `TuckerOptions`, `TTOptions`), or
            `"tensorly"` for the paper's own.
        inplace: change `model` itself (a model that is itself the convolution is returned anew).
        seed: a number or a `torch.Generator`; the global generators are neither read nor moved.

    Returns:
        The model with the layers replaced.

    Raises:
        CompressionError: nothing was matched or a layer cannot be replaced; it names the layer, what was
            found, and what to do.

    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    >>> small = decompose(model, "2", method="tucker", ratio=0.9)
    >>> small(torch.zeros(1, 3, 8, 8)).shape, 0.9 <= small[2].ratio < 0.91
    (torch.Size([1, 64, 8, 8]), True)
    """
    kind = get_method(method)
    replacements: dict[int, nn.Module] = {}
    for name, conv in select_layers(model, layer):
        with _naming(name):
            replacements[id(conv)] = kind.from_conv(conv, ratio=ratio, rank=rank, solver=solver, seed=seed)
    if inplace:
        return _swap(model, replacements)
    # A copy that is told the new layers are the copies of the old ones puts them wherever those stood,
    # and never copies a dense weight that would be thrown away.
    copied: nn.Module = copy.deepcopy(model, dict(replacements))
    return copied


def select_layers(model: nn.Module, layer: LayerSelector) -> list[tuple[str, nn.Module]]:
    """The modules that `layer` means, by name, each once.

    Args:
        model: where to look.
        layer: see `decompose`.

    Raises:
        CompressionError: a name does not exist (close ones are suggested), or nothing is matched.
    """
    if isinstance(layer, nn.Module) or not isinstance(layer, str | Iterable | Callable):
        raise CompressionError(
            f"layer must be a name, a glob, a list of those, or a predicate, got a {type(layer).__name__}; "
            f"there are {_listed(model)}."
        )
    if callable(layer):
        found = [(name, module) for name, module in _candidates(model) if layer(name, module)]
        if not found:
            raise CompressionError(f"the predicate picks no convolution; there are {_listed(model)}.")
        return found
    wanted = [layer] if isinstance(layer, str) else list(layer)
    if not wanted:
        raise CompressionError(f"no layer was named; there are {_listed(model)}.")
    selected = {id(module): (name, module) for text in wanted for name, module in _named(model, text)}
    return list(selected.values())


def _named(model: nn.Module, text: str) -> list[tuple[str, nn.Module]]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if text in modules:
        _check_not_factorized(text, modules)
        return [(text, modules[text])]
    if any(sign in text for sign in "*?["):
        found = [(name, module) for name, module in _candidates(model) if fnmatch.fnmatchcase(name, text)]
        if found:
            return found
        raise CompressionError(f"the glob {text!r} matches no convolution; there are {_listed(model)}.")
    close = difflib.get_close_matches(text, modules, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {_listed(model)}."
    raise CompressionError(f"the model has no layer {text!r}; {hint}")


def _check_not_factorized(name: str, modules: Mapping[str, nn.Module]) -> None:
    path = name.split(".")
    for length in range(len(path) + 1):
        outer = ".".join(path[:length])
        if isinstance(modules[outer], FactorizedConv):
            inside = "" if outer == name else f"is a stage of {outer!r}, which "
            raise CompressionError(
                f"layer {name!r}: {inside}is factorized already ({type(modules[outer]).__name__}); put its "
                "to_conv() back first, or decompose the original model."
            )


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every convolution that is not a stage of a layer that is factorized already."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, FactorizedConv):
            inside.update(id(stage) for stage in module)
        elif is_convolution(module) and id(module) not in inside:
            yield name, module


@contextmanager
def _naming(layer: str) -> Iterator[None]:
    """Put the layer's name in front of every error and warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except CompressionError as error:
            raise error.at(layer) from None
    for warning in caught:
        warnings.warn(f"layer {layer!r}: {warning.message}", warning.category, stacklevel=4)


def _listed(model: nn.Module, at_most: int = 8) -> str:
    names = [repr(name) for name, _ in _candidates(model)]
    if not names:
        return "no convolutions in it"
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")


def _swap(model: nn.Module, replacements: dict[int, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a second use
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
    return replacements.get(id(model), model)
