"""One budget over many layers: the lower hulls of their curves, one Lagrange multiplier, and what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Curve = Sequence[tuple[float, float]]  # (cost, loss) of every option of a layer


def allocate(curves: Sequence[Curve], budget: float) -> list[int] | None:
    """Which option each layer gets, so that the sum of the losses is small and that of the costs within the budget.

    Steps along the lower convex hulls are taken in the order of what they gain per cost, which is what one Lagrange
    multiplier for all layers gives (Everett 1963); where the next step does not fit, smaller ones that do fill up the
    remainder, greedily. What the hulls alone give is optimal among all allocations of its cost.

    Args:
        curves: the options of every layer.
        budget: the most that all may cost together.

    Returns:
        An index into every curve, or None if even the cheapest options cost too much.

    >>> allocate([[(1, 9.0), (2, 4.0), (4, 0.0)], [(1, 3.0), (4, 0.0)]], budget=5)
    [2, 0]
    """
    hulls = [lower_hull(curve) for curve in curves]
    chosen = [hull[0] for hull in hulls]
    spent = sum(curve[place][0] for curve, place in zip(curves, chosen, strict=True))
    if spent > budget:
        return None
    steps = []
    for layer, (curve, hull) in enumerate(zip(curves, hulls, strict=True)):
        for before, after in pairwise(hull):
            cost, gain = curve[after][0] - curve[before][0], curve[before][1] - curve[after][1]
            steps.append((-gain / cost, layer, after, cost))
    for _, layer, after, cost in sorted(steps):
        if spent + cost > budget:
            break
        chosen[layer], spent = after, spent + cost
    return _filled(curves, chosen, budget)


def lower_hull(curve: Curve) -> list[int]:
    """The indices of the options on the lower convex hull, from the cheapest to the one that loses least.

    >>> lower_hull([(1, 4.0), (2, 3.9), (3, 1.0), (4, 1.5), (5, 0.5)])
    [0, 2, 4]
    """
    hull: list[int] = []
    for place in sorted(range(len(curve)), key=lambda place: curve[place]):
        cost, loss = curve[place]
        if hull and loss >= curve[hull[-1]][1]:
            continue
        while len(hull) > 1 and _above(curve[hull[-2]], curve[hull[-1]], (cost, loss)):
            hull.pop()
        hull.append(place)
    return hull


def _above(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether `middle` is on or above the straight line between its neighbours."""
    slope = (middle[1] - first[1]) * (last[0] - first[0]), (last[1] - first[1]) * (middle[0] - first[0])
    return slope[0] >= slope[1]


def _filled(curves: Sequence[Curve], chosen: list[int], budget: float) -> list[int]:
    """Single exchanges that fit, on or off the hulls, the one that gains most first, until there is none."""
    while True:
        # Summed anew: a running sum of times would drift, and the budget is meant to the last bit.
        spent = sum(curve[place][0] for curve, place in zip(curves, chosen, strict=True))
        better = [
            (curve[now][1] - loss, layer, place)
            for layer, (curve, now) in enumerate(zip(curves, chosen, strict=True))
            for place, (cost, loss) in enumerate(curve)
            if loss < curve[now][1] and spent - curve[now][0] + cost <= budget
        ]
        if not better:
            return chosen
        _, layer, place = max(better, key=lambda one: one[0])  # the first of those that gain as much
        chosen[layer] = place
