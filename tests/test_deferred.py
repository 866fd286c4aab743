"""Annotations that can be asked for, without loading what they name before."""

import inspect
from typing import get_type_hints

import pytest

import tdcompress as td
import tdcompress.study


def annotated(thing):
    """A function itself; of a class itself and all that it, and what it inherits from this package, annotates."""
    if inspect.isfunction(thing):
        yield thing
    elif inspect.isclass(thing):
        for kind in thing.__mro__:
            if kind.__module__.startswith("tdcompress"):
                yield kind
                for member in vars(kind).values():
                    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                    if inspect.isfunction(member):
                        yield member


PUBLIC = [(module, name) for module in (td, tdcompress.study) for name in module.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_every_public_annotation_can_be_asked_for(module, name):
    for one in annotated(getattr(module, name)):
        get_type_hints(one)


def test_they_are_the_classes_themselves():
    import pandas
    from matplotlib.figure import Figure

    assert pandas.DataFrame in get_type_hints(td.correlate)["table"].__args__
    assert get_type_hints(td.Report.to_pandas)["return"] is pandas.DataFrame
    assert get_type_hints(td.Plan.plot)["return"] is Figure
