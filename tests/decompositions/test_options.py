"""What solvers may be told, and what is made of what users say."""

import pytest

import tdcompress as td
from tdcompress.decompositions import Options
from tdcompress.methods import METHODS, options_by_method


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_door_makes_options_of_what_a_user_says(method):
    kind = METHODS[method].options
    assert kind.of(None) == kind()
    assert kind.of(kind()) is not None
    with pytest.raises(td.CompressionError, match=r"unknown solver|no options"):
        kind.of("magic")


@pytest.mark.parametrize("kind", [td.CPOptions, td.TuckerOptions, td.TTOptions, td.SVDOptions])
def test_the_word_tensorly_stands_for_options(kind):
    assert kind.of("tensorly") == kind.tensorly()
    assert kind.tensorly().backend == "tensorly"
    with pytest.raises(td.CompressionError, match="backend must be"):
        kind(backend="numpy")


@pytest.mark.parametrize("told", [{"max_iter": 3}, {"penalty": 0.1}, {"starts": ("random",)}])
def test_what_tensorlys_solver_would_not_look_at_is_refused(told):
    with pytest.raises(td.CompressionError, match=f"cannot be told {next(iter(told))}"):
        td.CPOptions(backend="tensorly", **told)
    assert td.CPOptions(backend="tensorly", spatial="joint").spatial == "joint"


def test_a_method_without_options_takes_none():
    assert Options.of(None) == Options()
    with pytest.raises(td.CompressionError, match="has no options"):
        Options.of(td.CPOptions())
    with pytest.raises(td.CompressionError, match="tensorly has no solver"):
        Options.of("tensorly")


def test_methods_are_named_or_told():
    told = td.TTOptions(max_iter=3)
    assert options_by_method({"tt": told, "cp": None, "svd": "tensorly"}) == {
        "tt": told, "cp": td.CPOptions(), "svd": td.SVDOptions.tensorly()
    }  # fmt: skip
    assert list(options_by_method(["tt", "cp"])) == ["tt", "cp"]
    with pytest.raises(td.CompressionError, match="unknown method"):
        options_by_method("magic")
