"""Pickles of plain values and NumPy arrays, read without Python's own unpickler calling anything.

A pickle is a program: it may name any function for Python to call, give NumPy a dtype that lets it read foreign
memory, or claim a gigabyte with five bytes. What is read here is the little that CIFAR-10's files of 2009 consist of.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from typing import Any, ClassVar

import numpy as np

_KNOWN = (
    "PROTO STOP MARK POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE EMPTY_LIST LIST APPEND "
    "APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE "
    "GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD FRAME"
)
_CODES = [getattr(pickle, name)[0] for name in _KNOWN.split()]
_DTYPE = re.compile(r"[biufc]\d{1,2}")  # numbers; every other code, such as that of objects, is only shown
_DIMENSIONS = 4
# What the unpickler raises for bytes that are no pickle; its documentation says that the list is open.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class PickleError(ValueError):
    """It is no pickle, or one of something else."""


class _DType:
    """Stands for `numpy.dtype`: keeps the code, ignores the state that NumPy would believe."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for `numpy.ndarray`: keeps the shape, the dtype and the bytes."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        """The array, if it is one of numbers whose bytes are all there."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise PickleError("this pickle's array lacks its contents")
        _, shape, dtype, fortran, contents = self.state
        code = dtype.code if isinstance(dtype, _DType) else None
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise PickleError("this pickle's array is not of numbers")
        numbers = np.dtype(code)
        whole = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not whole or len(shape) > _DIMENSIONS or not isinstance(contents, bytes):
            raise PickleError("this pickle's array has no shape or contents")
        if math.prod(shape) * numbers.itemsize != len(contents):
            raise PickleError(f"this pickle's array of {len(contents)} bytes is said to be {numbers} {shape}"[:200])
        return np.frombuffer(contents, dtype=numbers).reshape(shape, order="F" if fortran is True else "C")


# Everything that CIFAR-10's pickles refer to by name; later versions of NumPy call its module otherwise.
_STANDINS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}


class _Reader(pickle._Unpickler):
    """The unpickler in Python, with the instructions for plain values only: the one in C takes them all.

    That one also makes a table as long as a number in the file says, where this one has a dictionary.
    """

    dispatch: ClassVar = {code: pickle._Unpickler.dispatch[code] for code in _CODES}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for what the pickle calls `module.name`."""
        if (module, name) not in _STANDINS:
            raise PickleError(
                f"this pickle asks for {module}.{name}"[:200]
                + ", which CIFAR-10's own files never do and which may run "
                "code; do not trust it"
            )
        return _STANDINS[module, name]


def read_arrays(contents: bytes) -> dict[Any, Any]:
    """The dictionary that a pickle holds, with its arrays as NumPy's.

    Args:
        contents: a pickle of Python 2 or 3 whose text is bytes.

    Raises:
        PickleError: it is cut short, names anything but arrays, or is no dictionary.

    Example:
        >>> read_arrays(pickle.dumps({"labels": [3, 1]}, protocol=2))
        {'labels': [3, 1]}
    """
    try:
        value = _Reader(io.BytesIO(contents), encoding="bytes").load()
        if not isinstance(value, dict):
            raise PickleError(f"this pickle is no dictionary but a {type(value).__name__}")
        return {key: one.to_numpy() if isinstance(one, _Array) else one for key, one in value.items()}
    except PickleError:
        raise
    except _UNPICKLING_ERRORS as error:
        raise PickleError(f"this cannot be unpickled ({type(error).__name__}: {error})"[:200]) from None
