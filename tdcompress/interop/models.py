"""tensorly-torch's layers to ours and back, for one layer or all of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from tdcompress.decompositions.bridge import tensorly_on_torch, tensorly_torch
from tdcompress.errors import CompressionError, warn
from tdcompress.interop.layers import Implementation, from_theirs, is_theirs, to_theirs
from tdcompress.layers import FactorizedConv
from tdcompress.surgery.left import grouped, without
from tdcompress.surgery.plain import HOOK_TABLES, check_wrapper, kept_hooks
from tdcompress.surgery.selection import LayerSelector, Named
from tdcompress.surgery.swap import swapped

_IMPLEMENTATIONS = ("factorized", "reconstructed", "mobilenet")


def from_tltorch(model: nn.Module, *, skip: LayerSelector | None = None, inplace: bool = False) -> nn.Module:
    """Replace tensorly-torch's `FactorizedConv` and `FactorizedLinear` by layers of this library.

    Exact: nothing is solved for, so the dense weights are the same up to rounding, and so are the outputs. A factorized
    convolution becomes a `CPConv`, `TuckerConv` or `TTConv`, a linear layer an `SVDConv`, or where its sides are
    reshaped a `TTMConv`: a `BlockTT` is one as it is, a CP and a Tucker have more parameters as one, and a warning says
    so where the layer becomes larger than a dense one.
    Weights of a CP are spread over its factors, factors of a Tucker along spatial axes go into its core, and ranks that
    nothing can fill, as `rank="same"` gives them for the tensor train, are cut. A `"Dense"` one becomes PyTorch's own.

    Args:
        model: such a layer, or a model with some. It is left alone unless `inplace`.
        skip: layers to leave as they are: names as in `model.named_modules()`, globs, a list of those, or a predicate.
        inplace: change `model` itself (a model that is itself the layer is returned anew).

    Returns:
        The layer, or the model with its layers replaced, of the same dtype, device, training mode, and requires_grad
        where it was the factors'. `solution` is None, for it is not known how well the factors approximate what.
        Attributes that a user hung on a layer stay behind with it.

    Raises:
        CompressionError: there is no such layer, or one has no counterpart here: several layers with one factorization,
            sides that are reshaped unlike each other, to more than four modes or of a Tucker to more than two, complex
            factors, hooks (tensor dropout and lasso are such), a
            parameter that something else holds too. All of them are named; nothing is changed then.

    >>> import tensorly, tltorch, torch
    >>> theirs = tltorch.FactorizedConv(6, 8, (3, 3), padding=1, factorization="tt", rank=[1, 4, 5, 6, 1])
    >>> theirs.reset_parameters()
    >>> ours = from_tltorch(theirs)
    >>> type(ours).__name__, ours.rank
    ('TTConv', (4, 5, 6))
    >>> x = torch.ones(2, 6, 5, 5)
    >>> with tensorly.backend_context("pytorch"):  # what their layers run on
    ...     torch.allclose(ours(x), theirs(x), atol=1e-6)
    True
    """
    return _converted(model, _outermost(model, is_theirs, "tensorly-torch"), from_theirs, skip, inplace)


def to_tltorch(
    model: nn.Module,
    *,
    implementation: Implementation = "factorized",
    skip: LayerSelector | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Replace factorized layers by tensorly-torch's `FactorizedConv` and `FactorizedLinear`: the way back.

    Exact, as `from_tltorch`. Kronecker products and tensor-train matrices become a `BlockTT`. What their layers have
    beside the factors of ours, the weights of a CP and the spatial factors of a Tucker, are ones and identities that
    are not trained. `layer.weight` is then their `FactorizedTensor`.

    They run on tensorly's PyTorch backend alone: `import tltorch` at the head of a script switches to it for the whole
    process. This function does not, and warns where the backend is another.

    Args:
        model: a factorized layer, or a model with some. It is left alone unless `inplace`.
        implementation: how their layer computes: stage by stage, by the dense weight, or for a CP with all spatial
            stages as one.
        skip: layers to leave as they are, as for `from_tltorch`.
        inplace: change `model` itself.

    Returns:
        Their layer, or the model with its layers replaced.

    Raises:
        CompressionError: there is no factorized layer, or theirs cannot do what one does: groups, transposed
            convolutions, padding other than with zeros, `padding="same"` with more on one side, spatial axes that are
            merged, split or in another order, rows or columns that are strided, embeddings, methods that tensorly has
            no class for, hooks, a parameter that something else holds too. All of them are named; nothing is changed
            then.

    >>> import tensorly, torch
    >>> import tdcompress as td
    >>> tensorly.set_backend("pytorch")
    >>> ours = td.TuckerConv.from_conv(nn.Conv2d(6, 8, 3, stride=(2, 1)), rank=(5, 4))
    >>> theirs = to_tltorch(ours)
    >>> theirs.weight
    TuckerTensor(shape=(8, 6, 3, 3), rank=(5, 4, 3, 3))
    >>> x = torch.ones(2, 6, 5, 5)
    >>> torch.allclose(ours(x), theirs(x), atol=1e-6)
    True
    """
    if implementation not in _IMPLEMENTATIONS:
        raise CompressionError(f"implementation must be one of {', '.join(_IMPLEMENTATIONS)}, got {implementation!r}.")
    layers = _outermost(model, lambda module: isinstance(module, FactorizedConv), "factorized")
    tensorly_torch()  # before the block, at whose end the backend would be what its import makes it
    with tensorly_on_torch() as tensorly:
        theirs = _converted(model, layers, lambda layer: to_theirs(layer, implementation), skip, inplace)
    if tensorly.get_backend() != "pytorch":
        warn(
            f"tensorly's backend is {tensorly.get_backend()!r}, on which layers of tensorly-torch do not run; call "
            "tensorly.set_backend('pytorch')."
        )
    return theirs


# --- layers of a model ------------------------------------------------------------------------------------


def _outermost(model: nn.Module, wanted: Callable[[nn.Module], bool], what: str) -> list[Named]:
    """The modules that are wanted, without those inside of one, each once.

    Raises:
        CompressionError: there are none.
    """
    inside: set[int] = set()
    outermost = []
    for name, module in model.named_modules():
        if id(module) not in inside and wanted(module):
            inside.update(id(part) for part in module.modules())
            outermost.append((name, module))
    if not outermost:
        raise CompressionError(f"there is no {what} layer in the model.")
    return outermost


def _converted(
    model: nn.Module,
    layers: Sequence[Named],
    convert: Callable[[Any], nn.Module],
    skip: LayerSelector | None,
    inplace: bool,
) -> nn.Module:
    """The model with every layer converted, all or nothing."""
    remaining, _ = without(model, layers, skip)
    holders = _holders(model, remaining)
    swaps, errors = [], {}
    for name, layer in remaining:
        try:
            check_wrapper(model, name)
            _check_alone(name, layer, holders)
            swaps.append((name, layer, convert(layer).train(layer.training)))
        except CompressionError as error:
            errors[name] = error
    if errors and len(remaining) == 1:
        ((name, only),) = errors.items()
        raise only.at(name) if name else only
    if errors:
        reasons = grouped({name: str(one) for name, one in errors.items()})
        count = f"{len(errors)} of {len(remaining)} layers cannot be converted; skip= leaves them as they are."
        raise CompressionError("\n".join([count, *reasons]))
    for name, _, new in swaps:
        if isinstance(new, FactorizedConv) and new.growth:
            warn(f"layer {name!r}: {new.growth}")
    return swapped(model, swaps, inplace=inplace)


def _holders(model: nn.Module, layers: Sequence[Named]) -> Mapping[int, set[str]]:
    """By the id of every parameter the names of the layers, and of the modules outside them, that hold it."""
    inside, holders = {id(part) for _, layer in layers for part in layer.modules()}, defaultdict(set)
    others = [(name, module) for name, module in model.named_modules() if id(module) not in inside]
    for name, holder in [*layers, *others]:
        for one in holder.parameters(recurse=id(holder) in inside):
            holders[id(one)].add(name)
    return holders


def _check_alone(name: str, layer: nn.Module, holders: Mapping[int, set[str]]) -> None:
    """Refuse a layer that carries or shares what the new one would not have.

    Raises:
        CompressionError: it has hooks, parametrizations, or parameters that others hold too.
    """
    for part in layer.modules():
        if parametrize.is_parametrized(part):
            raise CompressionError("it is parametrized; remove the parametrization first.")
        if any(kept_hooks(part, table) for table in HOOK_TABLES):
            raise CompressionError("it carries hooks, as tensor dropout and tensor lasso are; remove them first.")
    others = set[str]().union(*(holders[id(one)] for one in layer.parameters())) - {name}
    if others:
        raise CompressionError(f"it shares a parameter with {', '.join(map(repr, sorted(others)))}; give it its own.")
