"""Several approximations of one layer in one pass: the errors that each has by itself."""

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.metrics import get_metrics
from tdcompress.metrics.alternatives import alternative_errors
from tdcompress.metrics.changes import ChangedOutputs

RANKS = [(2, 2), (4, 3), (6, 6)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 4, 5)).eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, 6, 6, generator=generator) for count in (5, 3)]


@pytest.mark.parametrize("metric", ["relative_features", "absolute_features", "output_divergence"])
def test_they_are_those_of_models_with_one_of_them(model, metric):
    layers = [td.TuckerConv.from_conv(model[3], rank=rank) for rank in RANKS]
    found = alternative_errors(model, "3", layers, get_metrics(metric)[0], batches())
    for error, rank in zip(found, RANKS, strict=True):
        small = td.decompose(model, "3", "tucker", rank=rank)
        expected = td.approximation_errors(model, small, [metric], batches())["3"][metric]
        assert error == pytest.approx(expected, rel=1e-5)
    assert len(set(found)) == 3


def test_the_original_runs_once_a_batch_however_many_there_are(model):
    runs = []
    model[0].register_forward_hook(lambda *call: runs.append(1))
    layers = [td.TuckerConv.from_conv(model[3], rank=rank) for rank in RANKS]
    alternative_errors(model, "3", layers, get_metrics("relative_features")[0], batches())
    assert len(runs) == 2


def test_the_original_is_shown_a_batch_once_however_many_outputs_are_compared(model, monkeypatch):
    shown = []
    show = ChangedOutputs.show
    monkeypatch.setattr(ChangedOutputs, "show", lambda self, some: shown.append(some) or show(self, some))
    layers = [td.TuckerConv.from_conv(model[3], rank=rank) for rank in RANKS]
    alternative_errors(model, "3", layers, get_metrics("output_divergence")[0], batches())
    assert len(shown) == 2


def test_without_a_batch_there_is_no_error(model):
    layers = [td.TuckerConv.from_conv(model[3], rank=2)]
    for metric in ("relative_features", "output_divergence"):
        with pytest.raises(td.CompressionError, match="no sample was seen"):
            alternative_errors(model, "3", layers, get_metrics(metric)[0], [])
