"""The registry of methods is open to users."""

import pytest
from torch import nn

import tdcompress as td
from tdcompress.methods import METHODS, get_method, register_method


def test_a_registered_class_is_found_by_decompose():
    try:

        @td.register_method("mine")
        class Mine(td.TuckerConv):
            method = "mine"

        assert isinstance(td.decompose(nn.Conv2d(8, 8, 3), "", "mine", 0.5), Mine)
        with pytest.raises(td.CompressionError, match="no rank rule for method 'mine'"):
            td.decompose(nn.Conv2d(8, 8, 3), "", "mine", 0.5, rank="tensorly-torch")
    finally:
        METHODS.pop("mine", None)


def test_a_taken_name_and_a_foreign_class_are_refused():
    with pytest.raises(td.CompressionError, match="method 'cp' exists"):
        register_method("cp")(td.TuckerConv)
    with pytest.raises(td.CompressionError, match="no subclass of FactorizedConv"):
        register_method("linear")(nn.Linear)
    assert get_method("cp") is td.CPConv


def test_an_unfinished_class_is_refused_with_what_it_lacks():
    with pytest.raises(td.CompressionError, match="Half does not fill in choose_ranks, full_rank"):

        @td.register_method("half")
        class Half(td.FactorizedConv):
            method = "half"
