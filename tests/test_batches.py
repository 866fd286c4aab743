"""What a batch is, how many samples are looked at at a time, and the memory format in which batches run quickest."""

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


class Timed(nn.Module):
    """Takes two inputs, as a diffusion model does."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, sample, timestep):
        return self.second(self.first(sample) * timestep[:, None, None, None])


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


READERS = {
    "plan": lambda model, small, data: td.plan(model, 0.5, methods="svd", data=data),
    "compress": lambda model, small, data: td.compress(model, 0.5, methods="svd", data=data),
    "calibrate": lambda model, small, data: td.calibrate(small, data, model),
    "input_moments": lambda model, small, data: td.input_moments(model, data),
    "approximation_errors": lambda model, small, data: td.approximation_errors(model, small, data=data),
}
IMAGES, TIMES = torch.ones(2, 3, 8, 8), torch.ones(2)
NO_BATCH = "a batch of data must be a tensor, .* got "
OTHERS = "does not take what it is given: missing a required argument: 'timestep'; .* are 'sample', 'timestep'"


WRONG = [
    ([5], NO_BATCH + "int"),
    ([()], NO_BATCH + "tuple"),
    ([(IMAGES.numpy(), 1)], NO_BATCH + "tuple that starts with ndarray"),
    ({"sample": IMAGES, "timestep": TIMES}, r"the data is a dict, .* pass a list, \[batch\]"),
    ([IMAGES], OTHERS),
    ([(IMAGES, TIMES)], OTHERS + ".*only the first tensor is taken"),
]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_whoever_reads_data_says_what_is_wrong_with_a_batch(read):
    model = Timed().eval()
    small = td.decompose(model, "second", "svd", 0.5, progress=False)
    for data, message in WRONG:
        with pytest.raises(td.CompressionError, match=message):
            read(model, small, data)
    read(model, small, [{"sample": IMAGES, "timestep": TIMES}])


def test_a_report_says_which_inputs_are_missing():
    with pytest.raises(td.CompressionError, match=OTHERS):
        td.report(td.decompose(Timed(), "second", "svd", 0.5, progress=False), IMAGES)


def test_an_error_of_the_models_own_code_stays_what_it_is():
    class Broken(nn.Conv2d):
        def forward(self, x):
            raise TypeError("of its own")

    with pytest.raises(TypeError, match="of its own"):
        td.input_moments(nn.Sequential(Broken(3, 8, 3)), [IMAGES], "0")


def test_moments_name_the_layer_whose_input_has_other_channels():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(td.CompressionError, match=r"layer '0': it takes 3 channels, .* the shape \(2, 5, 8, 8\)"):
        td.input_moments(model, torch.ones(2, 5, 8, 8))


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
