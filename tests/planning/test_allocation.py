"""One budget over many layers: against brute force."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tdcompress.planning.allocation import allocate, lower_hull
from tests.drawing import cases

CURVE = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 100)), min_size=1, max_size=6)
CURVES = st.lists(CURVE, min_size=1, max_size=4)


def totals(curves, chosen):
    picked = [curve[place] for curve, place in zip(curves, chosen, strict=True)]
    return sum(cost for cost, _ in picked), sum(loss for _, loss in picked)


def all_totals(curves):
    return [totals(curves, chosen) for chosen in itertools.product(*(range(len(curve)) for curve in curves))]


@cases(1000)
@given(CURVES, st.integers(1, 100))
def test_a_budget_is_kept_or_impossible(curves, budget):
    chosen = allocate(curves, budget)
    if chosen is None:
        assert min(cost for cost, _ in all_totals(curves)) > budget
    else:
        assert totals(curves, chosen)[0] <= budget


@cases(1000)
@given(CURVES, st.integers(1, 100))
def test_no_single_exchange_would_be_better(curves, budget):
    chosen = allocate(curves, budget)
    for layer, curve in enumerate(curves if chosen else []):
        for place in range(len(curve)):
            other = [*chosen[:layer], place, *chosen[layer + 1 :]]
            cost, loss = totals(curves, other)
            assert cost > budget or loss >= totals(curves, chosen)[1]


@cases(1000)
@given(CURVES, st.integers(1, 100))
def test_on_the_hulls_nothing_of_the_same_cost_loses_less(curves, budget):
    hulls = [[curve[place] for place in lower_hull(curve)] for curve in curves]
    chosen = allocate(hulls, budget)
    if chosen is None:
        return
    cost, loss = totals(hulls, chosen)
    # One Lagrange multiplier misses the optimum by less than one step of one layer.
    largest = max((before[1] - after[1] for hull in hulls for before, after in itertools.pairwise(hull)), default=0)
    best = min(other for spent, other in all_totals(hulls) if spent <= budget)
    assert best <= loss <= best + largest
    assert cost <= budget


@cases(1000)
@given(CURVE)
def test_the_hull_is_convex_and_below_every_point(curve):
    hull = [curve[place] for place in lower_hull(curve)]
    assert hull[0][0] == min(cost for cost, _ in curve)
    assert hull[-1][1] == min(loss for _, loss in curve)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)
    assert all(slope < 0 for slope in slopes)
