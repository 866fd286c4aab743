"""Metrics on outputs in a study: the same as the library's, computed once for all trials."""

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.study.outputs import OutputErrors
from tests.study.functions import images, network, study

OUTPUTS = ["predicted_loss", "output_divergence"]


def of_values(**changes):
    return study(**{"metrics": OUTPUTS, "runs": 1, "methods": ["tucker"], "logits": False, **changes})


def test_equal_what_the_library_says_of_each(tmp_path):
    whole = of_values(metrics=["relative_weights", *OUTPUTS])
    frame = whole.run(tmp_path / "study.sqlite", progress=False)
    assert list(frame)[7:10] == ["relative_weights", *OUTPUTS]
    for row in frame.to_dict("records"):
        small = td.decompose(whole.model, row["layer"], row["method"], row["ratio"])
        # The study's pieces are other ones than one batch, and with them the draws of one seed; four samples have few.
        errors = td.approximation_errors(whole.model, small, OUTPUTS, whole.data, logits=False)[row["layer"]]
        assert row["output_divergence"] == pytest.approx(errors["output_divergence"], rel=1e-5)
        assert row["predicted_loss"] == pytest.approx(errors["predicted_loss"], rel=1e-4)


def test_are_the_same_on_workers(tmp_path, pool):
    here = of_values().run(tmp_path / "here.sqlite", progress=False)
    there = of_values().run(tmp_path / "there.sqlite", pool, progress=False)
    assert here[OUTPUTS].to_numpy() == pytest.approx(there[OUTPUTS].to_numpy(), rel=1e-5)


def test_trials_are_others_if_the_output_is_read_otherwise():
    keys = [{trial.key for trial in of_values(logits=logits).trials()} for logits in (None, False, True)]
    assert not keys[0] & keys[1] | keys[1] & keys[2]


def test_only_the_first_samples_are_looked_at():
    layer = td.decompose(network(), "3", "tucker", 0.5).get_submodule("3")

    def errors(data):
        found = OutputErrors(network(), ["0", "3"], data, td.metrics.get_metrics(OUTPUTS), False)
        return found.errors("3", layer)

    many = images(600)
    assert errors(many) == errors(many[:512])
    assert errors(many) != errors(many[:511])
    assert errors(list(many.split(100)))["output_divergence"] == pytest.approx(errors(many)["output_divergence"])


def test_going_back_to_an_earlier_layer_changes_nothing():
    small = {name: td.decompose(network(), name, "tucker", 0.5).get_submodule(name) for name in ("0", "3")}
    measure = OutputErrors(network(), ["0", "3"], images(20), td.metrics.get_metrics(["output_divergence"]), False)
    found = [(name, measure.errors(name, small[name])["output_divergence"]) for name in ("0", "3", "0", "3", "3", "0")]
    assert len(set(found)) == 2


def test_what_cannot_be_had_is_refused_before_anything_is_measured():
    with pytest.raises(td.CompressionError, match="predicted_loss, output_divergence need inputs"):
        of_values(data=None)
    model = nn.Sequential(nn.Embedding(30, 16), nn.Flatten(), nn.Linear(48, 5))
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(
        td.CompressionError, match="predicted_loss cannot be had of 0, whose inputs are numbers of rows"
    ):
        of_values(model=model, layers=["0", "2"], methods=["svd"], data=tokens)
