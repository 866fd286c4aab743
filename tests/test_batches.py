"""How many samples are looked at at a time, and the memory format in which batches run quickest."""

from typing import ClassVar

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.batches import first_samples, quickest, samples_in
from tdcompress.calibration.lessons import divided


class Viewing(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).view(len(x), -1)  # not of what lies channels last


class Strided(nn.Module):
    def forward(self, x):
        return x * x.stride(1)


def formats(model, data):
    return [batch.is_contiguous(memory_format=torch.channels_last) for batch in quickest(data, model)]


def images():
    return [torch.randn(3, 4, 6, 6) for _ in range(2)]


class Counting(nn.Sequential):
    """Notes how many samples each forward is given."""

    seen: ClassVar[list[int]] = []

    def forward(self, x):
        self.seen.append(len(x))
        return super().forward(x)


def test_a_tensor_of_all_samples_is_looked_at_in_parts_and_a_batch_as_a_whole():
    torch.manual_seed(0)
    model = Counting(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    small, data = td.decompose(model, "2", "svd", 0.5, progress=False), torch.randn(150, 2, 7, 7)
    Counting.seen.clear()
    parts = td.approximation_errors(model, small, data=data)["2"]
    assert max(Counting.seen) == 64
    assert parts == pytest.approx(td.approximation_errors(model, small, data=[data])["2"], rel=1e-5)
    assert max(Counting.seen) == 150


def test_what_is_trained_on_is_cut_by_its_own_size_alone():
    lessons = divided(torch.randn(200, 3), 100, 0.5, torch.Generator())
    assert [len(piece) for piece in (*lessons.held_out, *lessons.in_order)] == [100, 100]


def test_images_go_channels_last_each_time_they_are_read():
    data = images()
    found = quickest(data, nn.Conv2d(4, 4, 3).eval())
    for _ in range(2):
        assert all(torch.equal(one, other) for one, other in zip(found, data, strict=True))
    assert formats(nn.Conv2d(4, 4, 3).eval(), data) == [True, True]
    assert quickest(found, nn.Conv2d(4, 4, 3)) is found
    (volume,) = quickest([torch.randn(2, 3, 4, 4, 4)], nn.Conv3d(3, 3, 1))
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)


def test_what_stands_beside_the_images_is_handed_on_untouched():
    label = object()
    ((image, other),) = quickest([(torch.randn(2, 4, 6, 6), label)], nn.Conv2d(4, 4, 3))
    assert other is label
    assert image.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("model", [Viewing(4, 4, 3), Strided(), nn.Dropout(0.5), nn.Conv2d(5, 4, 3)])
def test_a_model_that_does_not_take_the_format_or_says_something_else_keeps_its_own(model):
    data = images()
    assert quickest(data, model) is data


@pytest.mark.parametrize(
    "data", [[torch.randn(2, 6)], [{"x": torch.randn(2, 4, 6, 6)}], [torch.ones(2, 4, 6, 6, dtype=torch.long)], []]
)
def test_what_is_no_batch_of_images_stays(data):
    assert quickest(data, nn.Identity()) is data


def test_the_first_samples_of_every_kind_of_batch():
    assert len(first_samples(torch.zeros(5, 2), 3)[0]) == 3
    (few,), count = first_samples([torch.zeros(2, 2), "labels"], 3)
    assert (len(few), count) == (2, 2)
    few, count = first_samples({"ids": torch.zeros(5, 2), "flag": True}, 3)
    assert (len(few["ids"]), few["flag"], count) == (3, True, 3)
    uneven = {"a": torch.zeros(5), "b": torch.zeros(4)}
    assert first_samples(uneven, 3) == (uneven, 5)
    assert [samples_in(one) for one in (torch.zeros(5, 2), [torch.zeros(2, 2), "labels"], uneven)] == [5, 2, 5]
