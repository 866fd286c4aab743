"""decompose(), and restore() for the way back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from tdcompress.decompositions import Solver
from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FactorizedConv, InputMoments
from tdcompress.layers.kinds import as_dense
from tdcompress.layers.request import check_reachable
from tdcompress.layers.spec import Axes
from tdcompress.methods import get_method
from tdcompress.surgery.plain import Policy, check_forward, check_hooks, check_wrapper, plain
from tdcompress.surgery.selection import LayerSelector, Named, dense_layers, select_factorized, select_layers
from tdcompress.surgery.swap import Swap, swapped
from tdcompress.surgery.ties import cut_ties, follower, retie, tied_groups

Hooks = Literal["refuse", "keep"]
Parametrized = Literal["refuse", "bake"]


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
    hooks: Hooks = "refuse",
    parametrized: Parametrized = "refuse",
    allow_subclasses: bool = False,
    axes: Axes | None = None,
    whiten: Mapping[str, InputMoments] | None = None,
) -> nn.Module:
    """Replace convolutions and linear layers of a model by factorized ones.

    All or nothing: if one of several layers cannot be replaced, the model is as it was. Every layer draws
    its random start from a numeric seed anew, so it does not matter which others are decomposed with it.
    Training mode, dtype, device, memory format, requires_grad and the order of the names are kept. A module that
    stands in several places is replaced in all of them, by one; layers that share their weight and are decomposed
    together share their factors, also an embedding and the head that is tied to it.

    Args:
        model: any module. It is left alone unless `inplace`; the new one shares no memory with it.
        layer: a name as in `model.named_modules()` (`""` is the model itself, for a model that is one
            layer), a glob such as `"layer4.*"`, a list of those, or a predicate on name and module.
            Globs and predicates pick the convolutions among what they match, and for a method that takes
            a matrix the linear layers and embeddings too.
        method: `"cp"`, `"tucker"`, `"tt"`, `"svd"`, or a registered one.
        ratio: the share of each layer's weight parameters to remove, in (0, 1): `ratio=0.9` keeps at most
            a tenth. What was reached is the new layer's `ratio`.
        rank: an exact rank instead: a number for CP and SVD, (out, in) for Tucker, the inner ranks along
            (in, *spatial, out) for TT. Or `"tensorly-torch"` together with a ratio, for the ranks that
            tensorly-torch and the paper would take.
        solver: None for the method's defaults, its options (`CPOptions`, `TuckerOptions`, `TTOptions`,
            `SVDOptions`), or `"tensorly"` for the paper's own.
        inplace: change `model` itself (a model that is itself the layer is returned anew).
        seed: a number or a `torch.Generator`; the global generators are neither read nor moved.
        hooks: what to do with a layer that carries hooks: `"refuse"`, or `"keep"` to carry them over. They then get
            the new layer as their module; a hook that needs a plain convolution is the user's business.
        parametrized: what to do with a layer whose weight or bias is computed (`nn.utils.parametrize`, weight and
            spectral norm of either kind, pruning): `"refuse"`, or `"bake"` to decompose the value of this moment.
        allow_subclasses: whether a subclass of a layer is treated as that layer. Its own forward is lost.
        axes: the arrangement of the spatial axes that a rank is meant for, as in a factorized layer's `axes`; by
            default the method's own.
        whiten: moments of the layers' inputs by name, from `input_moments`: the features, not the weights, are then
            approximated best, and the bias takes over the mean of what is lost. Embeddings have none, and neither need
            layers that are tied to one.

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
    kind, policy = get_method(method), Policy(hooks, parametrized, allow_subclasses)
    selected = select_layers(model, layer, linear=kind.takes_linear)

    def factorize(name: str, module: nn.Module, first: nn.Module | None) -> FactorizedConv:
        conv = plain(module, policy)
        if isinstance(first, FactorizedConv):
            return follower(first, conv)
        moments = None
        if whiten is not None and ConvSpec.of(conv).adapter.reads_features:
            if name not in whiten:
                raise CompressionError("whiten= has no moments of its inputs; see td.input_moments.")
            moments = whiten[name]
        return kind.from_conv(conv, ratio=ratio, rank=rank, solver=solver, seed=seed, axes=axes, whiten=moments)

    return swapped(model, _new_layers(model, selected, factorize), inplace=inplace)


def refusals(
    model: nn.Module,
    method: str = "tucker",
    ratio: float | None = None,
    *,
    solver: Solver = None,
    hooks: Hooks = "refuse",
    parametrized: Parametrized = "refuse",
    allow_subclasses: bool = False,
) -> dict[str, str]:
    """Which layers `decompose` would refuse, and why; found without decomposing anything.

    Args:
        model: where to look; it is left alone.
        method: see `decompose`, like the other arguments.
        ratio: the ratio that shall be reached; None for any.
        solver: see `decompose`.
        hooks: see `decompose`.
        parametrized: see `decompose`.
        allow_subclasses: see `decompose`.

    Returns:
        `{layer name: reason}`; what is not in it can be decomposed.

    >>> model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 3))
    >>> for name, reason in refusals(model, "tucker", ratio=0.5).items():
    ...     print(name, reason)
    0 tucker cannot make this layer smaller: rank 1 has 88 parameters, the dense weight 72. Leave it dense or use
    another method.
    >>> small = decompose(model, lambda name, _: name not in refusals(model, "tucker", 0.5), "tucker", 0.5)
    >>> [type(layer).__name__ for layer in small]
    ['Conv2d', 'TuckerConv', 'TuckerConv']
    """
    kind, policy = get_method(method), Policy(hooks, parametrized, allow_subclasses)
    candidates = list(dense_layers(model, kind.takes_linear))
    found = cut_ties(model, candidates)
    for name, module in candidates:
        try:
            check_wrapper(model, name)
            check_reachable(kind, ConvSpec.of(plain(module, policy)), ratio, solver)
        except CompressionError as error:
            found.setdefault(name, error)
    return {name: str(found[name]) for name, _ in candidates if name in found}


def restore(
    model: nn.Module,
    layer: LayerSelector | None = None,
    *,
    inplace: bool = False,
    hooks: Hooks = "refuse",
) -> nn.Module:
    """Put dense layers back: each factorized layer becomes the plain one that does the same.

    What the decomposition lost stays lost: the dense kernel is the one that the factors stand for.

    Args:
        model: a model with factorized layers. It is left alone unless `inplace`.
        layer: which of them, as for `decompose`; all by default.
        inplace: change `model` itself.
        hooks: what to do with hooks on a factorized layer: `"refuse"` or `"keep"`. Hooks on its stages are refused.

    Returns:
        The model with dense layers.

    Raises:
        CompressionError: there is no such layer, or it carries what a dense one cannot; the model is as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    >>> dense = restore(decompose(model, "2", method="cp", rank=5))
    >>> dense[2]
    Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1))
    """
    policy = Policy(hooks=hooks)
    selected = select_factorized(model, (lambda name, module: True) if layer is None else layer)

    def dense(_name: str, module: nn.Module, _first: nn.Module | None) -> nn.Module:
        assert isinstance(module, FactorizedConv)
        check_forward(module)
        check_hooks(module, policy)
        for stage_name, stage in module.named_children():
            with _naming(stage_name):
                as_dense(stage)
        restored: nn.Module = module.to_conv()
        return restored

    return swapped(model, _new_layers(model, selected, dense), inplace=inplace)


Make = Callable[[str, nn.Module, nn.Module | None], nn.Module]


def _new_layers(model: nn.Module, selected: Sequence[Named], make: Make) -> list[Swap]:
    """The old layers with their new ones; the model is not touched.

    Args:
        model: it has the layers.
        selected: them.
        make: from a layer's name, the layer, and what the first layer with the same weight has become, to the new one.
    """
    cut = cut_ties(model, selected)
    swaps: list[Swap] = []
    for group in tied_groups(selected):
        first = None
        for name, old in group:
            with _naming(name):
                check_wrapper(model, name)
                if name in cut:
                    raise cut[name]
                new = make(name, old, first)
            swaps.append((name, old, new))
            first = new if first is None else first
    retie(swaps)
    return swaps


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
        warnings.warn(f"layer {layer!r}: {warning.message}", warning.category, stacklevel=5)
