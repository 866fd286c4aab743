"""Arguments that have gone: what they said is understood, with a warning where they are written."""

import inspect

import pytest

import tdcompress as td
from tdcompress.deprecation import replaced_keywords
from tests.correlation.test_bootstrap import table


@replaced_keywords(("width", "height"), "size", lambda old: (old.get("width", 1), old.get("height", 1)))
def area(*, size=(1, 1)):
    """Of a rectangle."""
    return size[0] * size[1]


def test_old_keywords_are_understood_and_the_warning_says_what_to_write_at_the_line_that_has_them():
    with pytest.warns(
        FutureWarning, match=r"width=, height= are no arguments of area\(\) .* write size=\(3, 4\)"
    ) as seen:
        assert area(width=3, height=4) == 12  # type: ignore[call-arg]
    assert seen[0].filename == __file__
    with pytest.warns(FutureWarning, match=r"height= is no argument of area\(\)"):
        assert area(height=5) == 5  # type: ignore[call-arg]


def test_new_ones_warn_of_nothing_and_both_are_refused():
    assert area(size=(2, 3)) == 6
    assert area() == 1
    with pytest.raises(td.CompressionError, match=r"area\(\) has size= in place of width=; give that alone"):
        area(width=2, size=(2, 3))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="depth"):
        area(depth=2)  # type: ignore[call-arg]


def test_the_function_is_described_as_before():
    assert area.__doc__ == "Of a rectangle."
    assert list(inspect.signature(area).parameters) == ["size"]


@pytest.mark.parametrize(
    ("function", "errors", "old", "bootstrap"),
    [
        (td.compare, ("good", "bad"), {"unit": "layers", "seed": 3}, td.Bootstrap("layers", seed=3)),
        (td.compare, ("good", "bad"), {"resamples": 300}, td.Bootstrap("trials", 300)),
        (td.correlate, ("good",), {"interval": "trials", "resamples": 200, "seed": 1}, td.Bootstrap("trials", 200, 1)),
        (td.correlate, ("good",), {"interval": None, "seed": 1}, None),
        (td.regret, ("good",), {"resamples": 200, "seed": 1}, td.Bootstrap("layers", 200, 1)),
    ],
)
def test_what_a_bootstrap_was_told_before_there_was_one(function, errors, old, bootstrap):
    expected = function(table(), *errors, "test_error", bootstrap=bootstrap)
    with pytest.warns(FutureWarning, match=rf"of {function.__name__}\(\) any more.* write bootstrap="):
        assert function(table(), *errors, "test_error", **old) == expected
