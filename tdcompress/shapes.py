"""The words for shapes and ranks that all rooms share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

Rank = tuple[int, ...]  # one entry or several, as the method has it
Point = tuple[Rank, float]  # a rank, and the squared relative error that it promises
Axes = tuple[tuple[int, ...], ...]  # the spatial axes that each spatial stage works along, in order
# One number for all entries, the entries, a rule, or what a ratio gives; NumPy's integers, too.
AskedRank = SupportsIndex | Sequence[SupportsIndex] | str | None
