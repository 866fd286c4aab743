"""Norms written with the statistics that their inputs have."""

import copy

import pytest
import torch
from torch import nn

from tdcompress.calibration.batch_norm import restate
from tests.calibration.test_calibrate import images, network


def moved(dtype=torch.float64):
    """A network whose norms' statistics are far from those of their inputs."""
    model = network().to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean += torch.randn(norm.num_features, generator=generator)
            norm.running_var *= 0.1 + 3 * torch.rand(norm.num_features, generator=generator)
    return model


def inputs(dtype=torch.float64):
    return [x.to(dtype) for x in images(64)]


def test_the_answers_stay_and_the_statistics_are_those_of_the_inputs():
    model, data = moved(), torch.cat(inputs())
    before = model(data)
    restate(model, inputs())
    torch.testing.assert_close(model(data), before)
    seen = model[0](data)
    torch.testing.assert_close(model[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, seen.var((0, 2, 3)))
    # The variance of a batch is the biased one, which is all that is between the two modes.
    torch.testing.assert_close(model.train()(data), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("how", ["frozen", "no gradient", "no weight", "never reached"])
def test_norms_that_are_not_free_stay(how):
    model = moved()
    if how == "no gradient":
        model[4].bias.requires_grad_(False)
    if how == "no weight":
        plain = nn.BatchNorm2d(16, affine=False).double().eval()
        plain.load_state_dict(model[4].state_dict(), strict=False)
        model[4] = plain
    unused = model if how != "never reached" else nn.ModuleDict({"used": model, "4": nn.BatchNorm2d(16).double()})
    before = copy.deepcopy(unused)
    if how == "never reached":
        unused.forward = model.forward
    restate(unused, inputs(), ["4"] if how == "frozen" else [])
    norms = [(dict(one.named_modules())["4"]) for one in (before, unused)]
    assert all(torch.equal(value, norms[1].state_dict()[name]) for name, value in norms[0].state_dict().items())
    first = "used.1.running_mean" if how == "never reached" else "1.running_mean"
    assert not torch.equal(before.get_buffer(first), unused.get_buffer(first))


def test_a_model_without_norms_is_not_run():
    model = nn.Sequential(nn.Linear(2, 2))
    restate(model, iter([torch.zeros(3, 5)]))  # which would be refused
