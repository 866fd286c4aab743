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


@cases(2000)
@given(CURVES, st.integers(1, 100))
def test_a_budget_is_kept_or_impossible(curves, budget):
    chosen = allocate(curves, budget)
    if chosen is None:
        assert min(cost for cost, _ in all_totals(curves)) > budget
    else:
        assert totals(curves, chosen)[0] <= budget


@cases(2000)
@given(CURVES, st.integers(1, 100))
def test_no_single_exchange_would_be_better(curves, budget):
    chosen = allocate(curves, budget)
    if chosen is None:
        return
    for layer, curve in enumerate(curves):
        for place in range(len(curve)):
            other = [*chosen[:layer], place, *chosen[layer + 1 :]]
            cost, loss = totals(curves, other)
            assert cost > budget or loss >= totals(curves, chosen)[1]


@cases(2000)
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


@cases(2000)
@given(CURVES, st.integers(1, 100), st.integers(1, 10))
def test_what_one_multiplier_gives_is_the_best_of_all_that_cost_no_more(curves, price, unit):
    """Everett 1963: what is least in loss + multiplier · cost is the best there is for its cost."""
    chosen = [min(curve, key=lambda one: (unit * one[1] + price * one[0], one[0])) for curve in curves]
    budget, loss = (sum(option[side] for option in chosen) for side in (0, 1))
    assert min(other for spent, other in all_totals(curves) if spent <= budget) == loss
    assert totals(curves, allocate(curves, budget))[1] == loss


def test_steps_are_taken_by_what_they_gain_per_cost_until_one_does_not_fit():
    dear, cheap = [(1, 20), (5, 2)], [(1, 10), (2, 4)]
    assert allocate([dear, *[cheap] * 6], 13) == [0, *[1] * 6]
    assert allocate([[(1, 20), (3, 2)], [(1, 100), (2, 98)]], 4) == [1, 0]  # what is gained counts, not what there is
    assert allocate([[(1, 100), (11, 10), (12, 5)]], 3) == [0]  # no step from a point that was not reached
    assert allocate([[(3, 5)], [(2, 1), (4, 0.5)]], 5) == [0, 0]
    assert allocate([[(3, 5)], [(2, 1), (4, 0.5)]], 4) is None


def test_what_is_left_is_filled_with_what_gains_most_on_or_off_the_hull():
    little, more = [(1, 10), (2, 9), (4, 0)], [(1, 10), (2, 8), (4, 0)]
    assert lower_hull(little) == lower_hull(more) == [0, 2]
    assert allocate([little, more], 3) == [0, 1]
    assert allocate([more, little], 3) == [1, 0]
    assert allocate([little, more], 4) == [1, 1]
    assert allocate([more, [(9, 10), (10, 9), (12, 0)]], 11) == [1, 0]  # whatever the layers cost already


def test_of_equal_gains_the_first_is_taken():
    assert allocate([[(1, 2), (2, 1)], [(1, 2), (2, 1)]], 3) == [1, 0]
    assert allocate([[(1, 3), (2, 3), (2, 1)]], 2) == [2]
    assert allocate([[(1, 3), (2, 1), (2, 1)]], 2) == [1]
    off_the_hull = [(1, 10), (2, 9), (4, 0)]
    assert allocate([off_the_hull, off_the_hull], 3) == [1, 0]
    assert allocate([[(1, 10), (2, 9), (2, 9), (4, 0)]], 3) == [1]


def test_a_point_between_others_is_on_the_hull_only_if_it_is_below_them():
    assert lower_hull([(1, 2), (2, 1), (3, 0)]) == [0, 2]
    assert lower_hull([(1, 10), (3, 2), (6, 0)]) == [0, 1, 2]
    assert lower_hull([(3, 1), (1, 2), (2, 2)]) == [1, 0]


@cases(2000)
@given(CURVE)
def test_the_hull_is_convex_and_below_every_point(curve):
    hull = [curve[place] for place in lower_hull(curve)]
    assert hull[0][0] == min(cost for cost, _ in curve)
    assert hull[-1][1] == min(loss for _, loss in curve)
    for before, after in itertools.pairwise(hull):
        for cost, loss in curve:
            if before[0] <= cost <= after[0]:
                assert (loss - before[1]) * (after[0] - before[0]) >= (after[1] - before[1]) * (cost - before[0])
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(hull)]
    assert slopes == sorted(slopes)
    assert all(slope < 0 for slope in slopes)
