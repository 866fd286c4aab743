"""The tables of "Other decompositions" say what the study and the times beside it say."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import tdcompress as td
from examples.paper.at_equal_cost import STUDY, _read, as_markdown, at_share, draw, main, times_of


@pytest.fixture(scope="module")
def committed():
    table, _ = _read(STUDY)
    return table.merge(pd.read_csv(STUDY / "times.csv"), on=["layer", "method", "ratio"])


@pytest.mark.full
def test_the_committed_tables_are_those_of_the_committed_trials(committed):
    wanted = (STUDY / "equal.md").read_text(encoding="utf-8")
    dense = float(wanted.split("the dense network has ")[1].split("**")[0]) / 100
    assert as_markdown(committed, dense) == wanted


def test_the_picture_has_a_line_a_method(committed, tmp_path):
    draw(committed, 0.06, tmp_path / "equal.png")
    assert (tmp_path / "equal.png").stat().st_size > 10_000


def test_at_a_share_it_is_interpolated_over_what_is_worth_its_time():
    points = [("cp", 0.2, 0.8), ("cp", 0.4, 0.4), ("cp", 0.6, 0.5), ("svd", 0.5, 0.3)]
    table = pd.DataFrame([("conv", *point) for point in points], columns=["layer", "method", "share", "error"])
    assert at_share(table, "error", 0.3).loc["conv", "cp"] == pytest.approx(0.6)
    assert at_share(table, "error", 0.9).loc["conv", "cp"] == pytest.approx(0.4)  # not the slower, worse one
    assert np.isnan(at_share(table, "error", 0.3).loc["conv", "svd"])
    assert np.isnan(at_share(table, "error", 0.1).loc["conv"]).all()


def test_layers_are_timed_at_the_ranks_of_the_study(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    seen = []

    def noted(before, after, rounds):
        seen.append((before, after))  # what is timed: a layer's call, with the layer as its argument
        return 2.0, 1.0

    monkeypatch.setattr("examples.paper.at_equal_cost.median_milliseconds", noted)
    rows = [("1", "cp", 0.5, "7"), ("1", "tucker", 0.5, "5x3")]  # the second is not what our rule would choose
    table = pd.DataFrame(rows, columns=["layer", "method", "ratio", "rank"])
    found = times_of(pd.concat([table, table]), model, torch.zeros(2, 3, 9, 9))
    assert list(found["share"]) == [0.5, 0.5]
    assert [small.args[0].ranks for _, small in seen] == [(7,), (5, 3)]


def test_a_folder_without_a_study_is_an_error_that_names_it(tmp_path):
    with pytest.raises(td.CompressionError, match=r"has no study.*publish"):
        main(["--study", str(tmp_path)])


def test_every_level_and_method_was_timed(committed):
    cells = set(itertools.product(*(committed[name].unique() for name in ("layer", "method", "ratio"))))
    assert cells == set(committed[["layer", "method", "ratio"]].itertuples(index=False, name=None))
    assert (committed["share"] > 0).all()
