"""How many examples hypothesis draws for a test."""

from hypothesis import HealthCheck, settings

FULL = 100  # examples, the profile's own number in a full run


def cases(count):
    """So many examples in a full run, and in a quick one the profile's share of them, but no fewer than five.

    Drawing a layer may take longer than using it.
    """
    share = settings.default.max_examples / FULL
    return settings(max_examples=max(min(count, 5), round(share * count)), suppress_health_check=[HealthCheck.too_slow])
