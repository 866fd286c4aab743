"""What a plan is about: computed once, from what was asked."""

import pytest
import torch
from torch import nn

import tdcompress as td
from tdcompress.planning.problem import PlanRequest, problem_of
from tdcompress.surgery.plain import Policy


def request(**changes):
    usual = {
        "ratio": 0.5,
        "methods": "tucker",
        "layers": None,
        "skip": None,
        "on_refusal": "raise",
        "policy": Policy(),
        "objective": "parameters",
        "metric": "relative_weights",
        "example_inputs": None,
        "data": None,
        "trials": None,
        "logits": None,
        "seed": 0,
    }
    return PlanRequest(**{**usual, **changes})


class Twice(nn.Module):
    """Two convolutions of one weight, one that is not called, and a count of forwards."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.idle = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3))
        self.second.weight = self.first.weight
        self.forwards = 0

    def forward(self, x):
        self.forwards += 1
        return self.second(self.first(x))


def test_layers_that_share_a_weight_are_one_and_what_is_skipped_is_left():
    model = Twice()
    problem = problem_of(model, request(skip="idle"))
    assert list(problem.convs) == ["first"]
    assert problem.tied == {"first": ("second",)}
    assert list(problem.left) == ["idle"]
    assert problem.specs["first"] == td.ConvSpec.of(model.first)
    assert model.forwards == 0


def test_the_calls_of_layers_are_noted_in_one_forward_and_kept():
    model, x = Twice(), torch.randn(2, 4, 5, 5)
    problem = problem_of(model, request(objective="macs", example_inputs=x))
    assert list(problem.convs) == ["first"]  # nobody named the idle one
    assert model.forwards == 1
    (call,) = problem.calls["first"]
    assert torch.equal(call.input, x)
    assert problem.calls is problem.calls
    assert model.forwards == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.5}, "ratio"),
        ({"objective": "size"}, "unknown objective 'size'"),
        ({"methods": ("tucker", "tuker")}, "unknown method 'tuker'"),
    ],
)
def test_a_request_that_cannot_be_is_refused(changes, message):
    with pytest.raises(td.CompressionError, match=message):
        request(**changes)
