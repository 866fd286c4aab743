"""Dataclasses back from JSON that nobody vouches for: every value is compared with the type that its field declares."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tdcompress.errors import CompressionError

_LARGEST = 1 << 63  # no count of parameters or multiply-adds is larger
_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def typed(hint: Any, value: Any, where: str) -> Any:
    """A value of JSON as one of a type, with tuples for lists and dataclasses for objects.

    Args:
        hint: a class of numbers, words or a dataclass; a tuple, a union or a `Literal` of such; or `Any`.
        value: what `json.loads` gave.
        where: what it is called in an error.

    Raises:
        CompressionError: it is none; the first place where it is not is named.

    Example:
        >>> typed(tuple[int, ...], [1, 2], "rank")
        (1, 2)
        >>> typed(tuple[int, ...], [1, "2"], "rank")
        Traceback (most recent call last):
            ...
        tdcompress.errors.CompressionError: rank[1] must be int, found '2'.
    """
    origin = get_origin(hint)
    if is_dataclass(hint):
        return _dataclass(hint, value, where)
    if origin is tuple:
        return _tuple(get_args(hint), value, where)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(hint), value, where)
    if origin is Literal and any(type(value) is type(one) and value == one for one in get_args(hint)):
        return value
    if hint is Any or (isinstance(hint, type) and _is_plain(hint, value)):
        return _as_tuples(value)
    raise CompressionError(f"{where} must be {getattr(hint, '__name__', hint)}, found {_shown.repr(value)}.")


def _is_plain(hint: type, value: Any) -> bool:
    """Whether it is of the class: a whole number will do for a float, NaN for none, and True is no number."""
    if hint is float and type(value) is float:
        return not math.isnan(value)
    if hint in (int, float):
        return type(value) is int and abs(value) < _LARGEST
    return type(value) is hint


def _dataclass(hint: Any, value: Any, where: str) -> Any:
    known = {one.name: one for one in fields(hint) if one.init}
    if not isinstance(value, dict) or value.keys() - known.keys():
        raise CompressionError(f"{where} must have the fields {', '.join(known)}, found {_shown.repr(value)}.")
    missing = [
        name
        for name, one in known.items()
        if name not in value and one.default is MISSING and one.default_factory is MISSING
    ]
    if missing:
        raise CompressionError(f"{where} lacks {', '.join(missing)}.")
    hints = _hints(hint)
    return hint(**{name: typed(hints.get(name, Any), one, f"{where}.{name}") for name, one in value.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except NameError:  # a class of somebody else's, whose hints need what is imported for type checkers only
        return {}


def _tuple(entries: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    endless = len(entries) == 2 and entries[1] is ...
    if not isinstance(value, list) or (not endless and len(value) != len(entries)):
        raise CompressionError(f"{where} must be a list, found {_shown.repr(value)}.")
    hints = [entries[0]] * len(value) if endless else entries
    return tuple(typed(hint, one, f"{where}[{at}]") for at, (hint, one) in enumerate(zip(hints, value, strict=True)))


def _one_of(hints: Sequence[Any], value: Any, where: str) -> Any:
    for hint in hints:
        try:
            return typed(hint, value, where)
        except CompressionError as error:
            last = error
    raise last


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
