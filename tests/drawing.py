"""How much of what could be drawn or combined a test takes, in a quick run and in a full one."""

import pytest
from hypothesis import HealthCheck, settings

FULL = 100  # examples, the profile's own number in a full run


def cases(count):
    """So many examples in a full run, and in a quick one the profile's share of them, from five to the profile's own.

    Drawing a layer may take longer than using it.
    """
    most = settings().max_examples
    drawn = count if most >= FULL else max(min(count, 5), min(most, round(most / FULL * count)))
    return settings(max_examples=drawn, suppress_health_check=[HealthCheck.too_slow])


def more(*parameters):
    """Parameters, one or a tuple of them a test, that a quick run leaves out."""
    return [pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.full) for one in parameters]


def each_once(pairs):
    """All pairs as parameters, of which a quick run takes as few as show each member of either side.

    The second members share the first ones out among them, so that most combine with one that is not the first.
    """
    pairs, shown = list(pairs), {}
    for side in (1, 0):
        members = dict.fromkeys(pair[side] for pair in pairs)
        for number, member in enumerate(members):
            able = [pair for pair in pairs if pair[side] == member]
            if not any(pair in shown for pair in able):
                shown[able[number % len(able)]] = True
    return [pytest.param(*pair, marks=() if pair in shown else pytest.mark.full) for pair in pairs]
