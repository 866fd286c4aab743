"""Arguments that have gone: what they were is still understood, with a warning, before they are refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from tdcompress.errors import CompressionError, warn

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def replaced_keywords(
    old: tuple[str, ...], new: str, as_new: Callable[[Mapping[str, Any]], Any]
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Let a function take keywords that it had, and say what to write instead.

    Args:
        old: keywords that the function does not have any more.
        new: the one that it has in their place.
        as_new: from the old ones that were given, by name, to the value of the new one.

    Returns:
        A decorator. The function warns with a `FutureWarning` at the line that calls it, and raises a
        `CompressionError` where an old keyword and the new one are given together.

    >>> @replaced_keywords(("width", "height"), "size", lambda old: (old.get("width", 1), old.get("height", 1)))
    ... def area(*, size=(1, 1)):
    ...     return size[0] * size[1]
    >>> area(size=(2, 3))
    6
    >>> area(width=2, size=(2, 3))
    Traceback (most recent call last):
        ...
    tdcompress.errors.CompressionError: area() has size= in place of width=; give that alone.
    """

    def decorated(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        @functools.wraps(function)
        def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            given = {name: kwargs.pop(name) for name in old if name in kwargs}
            if given:
                names = ", ".join(f"{name}=" for name in given)
                gone = "is no argument" if len(given) == 1 else "are no arguments"
                if new in kwargs:
                    raise CompressionError(f"{function.__name__}() has {new}= in place of {names}; give that alone.")
                kwargs[new] = as_new(given)
                warn(
                    f"{names} {gone} of {function.__name__}() any more, and will be refused; write "
                    f"{new}={kwargs[new]!r}.",
                    FutureWarning,
                )
            return function(*args, **kwargs)

        return called

    return decorated
