"""The registry of methods: a name -> the layer that a convolution becomes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from tdcompress.decompositions import Options, Solver
from tdcompress.errors import CompressionError, unknown
from tdcompress.layers import (
    BLRConv,
    BTDConv,
    ConvSpec,
    CPConv,
    FactorizedConv,
    HTConv,
    KroneckerConv,
    SVDConv,
    TRConv,
    TTConv,
    TTMConv,
    TuckerConv,
)

METHODS: dict[str, type[FactorizedConv]] = {
    "cp": CPConv,
    "tucker": TuckerConv,
    "tt": TTConv,
    "svd": SVDConv,
    "btd": BTDConv,
    "ht": HTConv,
    "tr": TRConv,
    "kronecker": KroneckerConv,
    "ttm": TTMConv,
    "blr": BLRConv,
}

Methods = str | Sequence[str] | Mapping[str, Solver]  # names, or names with what their solvers are told

_Layer = TypeVar("_Layer", bound=type[FactorizedConv])


def get_method(name: str) -> type[FactorizedConv]:
    """The layer class registered as `name`.

    Raises:
        CompressionError: nothing is registered under this name; the known ones are listed.

    >>> get_method("tucker").__name__
    'TuckerConv'
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def options_by_method(methods: Methods | None) -> dict[str, Options]:
    """What each method is told, by its name.

    Args:
        methods: registered names, or one; or a mapping of names to options, None for a method's defaults, or the word
            `"tensorly"`. None for the methods that are planned by default, at their defaults.

    Raises:
        CompressionError: an unknown name, or options that are not the method's.

    >>> options_by_method("svd"), list(options_by_method(None))
    ({'svd': SVDOptions(backend='own', split='all')}, ['cp', 'tucker', 'tt', 'svd'])
    """
    if methods is None:
        methods = planned_by_default()
    if isinstance(methods, str):
        methods = (methods,)
    solvers = methods if isinstance(methods, Mapping) else dict.fromkeys(methods)
    return {name: get_method(name).options.of(solver) for name, solver in solvers.items()}


def planned_by_default() -> tuple[str, ...]:
    """The methods that `plan` and `compress` try where none are named."""
    return tuple(name for name, kind in METHODS.items() if kind.planned_by_default)


def taking_matrices() -> tuple[str, ...]:
    """The methods that take linear layers and embeddings."""
    return tuple(name for name, kind in METHODS.items() if kind.takes_linear)


def taking(spec: ConvSpec) -> tuple[str, ...]:
    """The methods that take such a layer."""
    return tuple(name for name, kind in METHODS.items() if kind.takes(spec))


def register_method(name: str, *, replace: bool = False) -> Callable[[_Layer], _Layer]:
    """Make a factorized convolution available to `decompose` under a name; a class decorator.

    The class's `method` becomes that name.

    Args:
        name: what `decompose(…, method=name)` will find.
        replace: whether a method of that name may be overwritten.

    Raises:
        CompressionError: the name is taken, or the class is no `FactorizedConv` or an unfinished one.

    >>> import tdcompress as td
    >>> @td.register_method("my-cp")
    ... class MyCP(td.CPConv):
    ...     pass
    >>> get_method("my-cp").__name__, MyCP.method
    ('MyCP', 'my-cp')
    >>> _ = METHODS.pop("my-cp")
    """

    def register(layer: _Layer) -> _Layer:
        if not (isinstance(layer, type) and issubclass(layer, FactorizedConv)):
            raise CompressionError(f"method {name!r}: {layer!r} is no subclass of FactorizedConv.")
        if inspect.isabstract(layer):
            missing = ", ".join(sorted(layer.__abstractmethods__))
            raise CompressionError(f"method {name!r}: {layer.__name__} does not fill in {missing}.")
        if name in METHODS and not replace:
            raise CompressionError(
                f"method {name!r} exists ({METHODS[name].__name__}); pass replace=True to overwrite."
            )
        taken = next((known for known, kind in METHODS.items() if kind is layer and known != name), None)
        if taken is not None:
            raise CompressionError(f"method {name!r}: {layer.__name__} is method {taken!r} already; derive from it.")
        METHODS[name] = layer
        layer.method = name
        return layer

    return register
