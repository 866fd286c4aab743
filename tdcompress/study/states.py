"""The states of a network in a study, and what their columns are called: decomposed, calibrated, fine-tuned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch

from tdcompress.errors import CompressionError

CALIBRATED, FINETUNED = "calibrated_", "finetuned_"  # before the names of performances
_CHANGED = (CALIBRATED, FINETUNED, "finetuned[")
_STRATEGY = re.compile(r"finetuned\[([^\[\]]+)\]_")
_RESERVED = ("layer", "method", "ratio", "run", "rank", "kept", "sweeps", "seconds")
_BEFORE = "before fine-tuning"


def finetuned(strategy: str | None) -> str:
    """What stands before a performance after fine-tuning; None for the only strategy, which has no name.

    >>> finetuned("adam"), finetuned(None)
    ('finetuned[adam]_', 'finetuned_')
    """
    return FINETUNED if strategy is None else f"finetuned[{strategy}]_"


def change_to(prefix: str) -> str:
    """What brings a network into a state, by what the state's columns begin with; its seconds are called so.

    >>> change_to("calibrated_"), change_to("finetuned[adam]_")
    ('calibrate', 'finetune[adam]')
    """
    return prefix.replace("ed", "e", 1).removesuffix("_")


def can_name(strategy: object) -> bool:
    """Whether a strategy may be called that: columns shall tell where the name ends.

    >>> can_name("one-cycle"), can_name("a]"), can_name("")
    (True, False, False)
    """
    return isinstance(strategy, str) and bool(_STRATEGY.fullmatch(finetuned(strategy)))


def states(columns: Iterable[str]) -> dict[str, str]:
    """The states that columns are of: what a reader calls them, and what their columns begin with.

    >>> states(["norm", "finetuned[sgd]_norm", "finetuned[adam]_norm"])
    {'before fine-tuning': '', 'after sgd': 'finetuned[sgd]_', 'after adam': 'finetuned[adam]_'}
    """
    columns = list(columns)
    fixed = {"after calibration": CALIBRATED, "after fine-tuning": FINETUNED}
    there = {title: prefix for title, prefix in fixed.items() if any(name.startswith(prefix) for name in columns)}
    return {_BEFORE: "", **there, **{f"after {name}": finetuned(name) for name in strategies(columns)}}


def strategies(columns: Iterable[str]) -> list[str]:
    """The names of the strategies of fine-tuning that columns are of, in their order.

    >>> strategies(["finetuned[sgd]_norm", "finetuned[sgd]_mean", "finetuned_norm"])
    ['sgd']
    """
    found = (_STRATEGY.match(name) for name in columns)
    return list(dict.fromkeys(match[1] for match in found if match))


def checked(performances: Any, metrics: list[str]) -> dict[str, float]:
    """What `evaluate` gave, as floats by name.

    Args:
        performances: finite numbers by name, if that is what they are.
        metrics: names that errors have.

    Raises:
        CompressionError: they are not, or a name means something else.
    """
    if not isinstance(performances, Mapping) or not performances:
        raise CompressionError(f"evaluate must return a dict of numbers by name, and returned {performances!r}.")
    for name, value in performances.items():
        if not isinstance(name, str) or name in (*_RESERVED, *metrics) or name.startswith(_CHANGED):
            raise CompressionError(f"evaluate names a performance {name!r}, which is a column of another meaning.")
        value = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        if not isinstance(value, Real) or not abs(float(value)) < float("inf"):
            raise CompressionError(f"evaluate must return finite numbers, and returned {name}={value!r}.")
    return {name: float(value) for name, value in performances.items()}
