"""Which layers are fitted in one pass over the data."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tdcompress as td
from tdcompress.batches import quickest
from tdcompress.calibration import order
from tdcompress.calibration.order import multiply_adds, waves_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Fit:
    def __init__(self, nbytes=1):
        self.nbytes = nbytes


def sizes(count, work, nbytes=1):
    fits: Any = [Fit(nbytes) for _ in range(count)]
    return [len(wave) for wave in waves_of(fits, work)]


def never():
    raise AssertionError("nobody needs to know")


class TestWaves:
    def test_few_layers_are_alone_whatever_it_takes(self):
        assert sizes(8, never) == [1] * 8

    def test_many_are_alone_where_the_passes_take_little(self):
        assert sizes(20, lambda: order._WORK // 20) == [1] * 20
        assert sizes(20, lambda: order._WORK // 10) == [2] * 10
        assert sizes(20, lambda: 0) == [1] * 20

    def test_and_share_as_few_passes_as_ever_where_they_take_much(self):
        assert sizes(12, lambda: order._WORK) == [3, 3, 3, 3]
        assert sizes(72, lambda: order._WORK) == [36, 36]

    def test_equations_that_are_too_large_together_are_kept_apart(self):
        assert sizes(72, lambda: order._WORK, nbytes=order._BYTES // 2) == [2] * 36


@pytest.mark.parametrize("data", ["list", "loader", "channels last", "unsized"])
def test_the_work_of_a_pass_is_that_of_all_batches_and_models(data):
    model, images = nn.Conv2d(3, 4, 3).eval(), torch.randn(6, 3, 5, 5)
    batches: Any = {
        "list": list(images.split(2)),
        "loader": DataLoader(TensorDataset(images), batch_size=2),
        "channels last": quickest(list(images.split(2)), model),
        "unsized": Unsized(images.split(2)),
    }[data]
    with torch.no_grad():
        assert multiply_adds([model, model], batches) == 2 * 6 * (4 * 3 * 3 * 3) * 3 * 3


class Unsized:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_deep_network_comes_nearer_with_a_pass_for_each_layer(monkeypatch):
    torch.manual_seed(0)
    blocks = [part for _ in range(12) for part in (nn.Linear(24, 24), nn.ReLU(), nn.LayerNorm(24))]
    model, data = nn.Sequential(*blocks).eval(), list(torch.randn(512, 24).split(128))
    small = td.decompose(model, "*", "svd", 0.5)

    def change():
        better = td.calibrate(small, data, model)
        with torch.no_grad():
            before, after = (torch.cat([one(x) for x in data]) for one in (model, better))
        return float((before - after).norm() / before.norm())

    alone = change()
    monkeypatch.setattr(order, "_WORK", 0)
    assert alone < 0.9 * change()
