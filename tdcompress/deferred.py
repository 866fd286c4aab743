"""Types of packages that are imported only where they are needed, for annotations that name them.

`typing.get_type_hints` finds the class itself, and imports its package by that; where the package is not installed, it
finds `Any`.

>>> from typing import get_type_hints
>>> def rows(table: DataFrame) -> int: ...
>>> get_type_hints(rows)["table"].__name__
'DataFrame'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ForwardRef

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
else:
    Figure = ForwardRef("_found('matplotlib.figure', 'Figure')", module=__name__)
    DataFrame = ForwardRef("_found('pandas', 'DataFrame')", module=__name__)

__all__ = ["DataFrame", "Figure"]


def _found(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError:
        return Any
