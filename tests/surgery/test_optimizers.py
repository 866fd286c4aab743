"""replace_parameters(): an optimizer that was built before the swap."""

from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td


def a_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 2))


X = torch.randn(4, 3, 7, 7)


def step(model, optimizer):
    optimizer.zero_grad()
    model(X).square().sum().backward()
    optimizer.step()


def two_groups(model, kind=torch.optim.AdamW, **how):
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    return kind([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01, **how)


def ids(parameters):
    return [id(parameter) for parameter in parameters]


@pytest.mark.parametrize("inplace", [False, True])
def test_groups_and_the_state_of_what_stays_are_kept(inplace):
    model = a_model()
    optimizer = two_groups(model)
    step(model, optimizer)
    linear_momentum = optimizer.state[model[4].weight]["exp_avg"].clone()
    before = dict(model.named_parameters()) if inplace else model
    small: Any = td.decompose(model, "2", "tucker", rank=(4, 5), inplace=inplace)
    td.replace_parameters(optimizer, before, small)
    decay, rest = (group["params"] for group in optimizer.param_groups)
    assert ids(decay) == ids([small[0].weight, *(stage.weight for stage in small[2]), small[4].weight])
    assert ids(rest) == ids([small[0].bias, small[1].weight, small[1].bias, small[2].bias, small[4].bias])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert set(ids(optimizer.state)) == set(
        ids([*small[0].parameters(), *small[1].parameters(), *small[4].parameters()])
    )
    assert torch.equal(optimizer.state[small[4].weight]["exp_avg"], linear_momentum)
    weights = [parameter.detach().clone() for parameter in small.parameters()]
    step(small, optimizer)
    assert all(not torch.equal(old, new) for old, new in zip(weights, small.parameters(), strict=True))


def test_a_scheduler_and_the_way_back():
    model = a_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step(model, optimizer)
    small = td.decompose(model, ["0", "2"], "cp", 0.3)
    td.replace_parameters(optimizer, model, small)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    dense = td.restore(small)
    td.replace_parameters(optimizer, small, dense)
    assert ids(optimizer.param_groups[0]["params"]) == ids(dense.parameters())
    step(dense, optimizer)


def test_the_model_itself_and_a_parametrized_layer():
    for conv in (nn.Conv2d(3, 8, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))):
        optimizer = torch.optim.Adam(conv.parameters())
        layer = td.decompose(conv, "", "tucker", rank=(4, 3), parametrized="bake")
        td.replace_parameters(optimizer, conv, layer)
        assert set(ids(optimizer.param_groups[0]["params"])) == set(ids(layer.parameters()))


def test_shared_factors_are_taken_once_and_frozen_ones_not_added():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    small: Any = td.decompose(model, "*", "tucker", 0.3)
    td.replace_parameters(optimizer, model, small)
    expected = [*(stage.weight for stage in small[0]), small[0].bias, small[1].bias]
    assert sorted(ids(optimizer.param_groups[0]["params"])) == sorted(ids(expected))


def test_names_of_parameters_are_kept_up():
    model = a_model()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    if "param_names" not in optimizer.param_groups[0]:
        pytest.skip("this PyTorch has no names in its optimizers")
    small = td.decompose(model, "2", "tucker", 0.3)
    td.replace_parameters(optimizer, model, small)
    assert sorted(optimizer.param_groups[0]["param_names"]) == sorted(name for name, _ in small.named_parameters())


def test_parameters_of_other_models_stay():
    model, other = a_model(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*other.parameters(), *model.parameters()], lr=0.1, momentum=0.9)
    optimizer.state[other.weight]["momentum_buffer"] = torch.ones(2, 2)
    td.replace_parameters(optimizer, model, td.decompose(model, "0", "tucker", 0.3))
    assert ids(optimizer.param_groups[0]["params"][:2]) == ids(other.parameters())
    assert other.weight in optimizer.state


def test_what_cannot_be_carried_on_is_refused_and_nothing_is_changed():
    model = a_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        td.CompressionError, match=r"the new model has nothing in the place of the parameter '0.weight'"
    ):
        td.replace_parameters(optimizer, model, nn.Sequential(nn.ReLU()))
    assert ids(optimizer.param_groups[0]["params"]) == ids(model.parameters())
    with pytest.raises(td.CompressionError, match="LBFGS keeps one history of all parameters"):
        td.replace_parameters(torch.optim.LBFGS(model.parameters()), model, model)
