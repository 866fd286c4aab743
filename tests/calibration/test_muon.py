"""Steps that are orthogonal matrices: which parameters they are for, how long they are, and where they lead."""

import pytest
import torch
from torch import nn

from tdcompress.calibration.muon import Muon, are_matrices, orthogonal


def drawn(*shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(4, 4), (6, 40), (40, 6), (2, 3)])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_singular_vectors_stay_and_the_values_come_near_one(shape, scale):
    matrix = drawn(*shape, scale=scale)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.mT @ orthogonal(matrix) @ right.mT
    torch.testing.assert_close(values, values.diagonal().diag(), rtol=0, atol=1e-4)
    assert values.diagonal().min() > 0.6
    assert values.diagonal().max() < 1.3


def test_directions_that_a_matrix_does_not_have_are_not_made_up():
    assert torch.equal(orthogonal(torch.zeros(4, 6)), torch.zeros(4, 6))
    column, row = drawn(5, 1), drawn(1, 7)
    found = torch.linalg.svdvals(orthogonal(column @ row))
    assert 0.6 < found[0] < 1.3
    assert found[1:].max() < 1e-4


@pytest.mark.parametrize("shape", [(8, 8), (4, 64), (64, 4), (16, 8, 3, 3)])
@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_a_step_is_a_fifth_of_the_learning_rate_long_whatever_the_gradient(shape, length):
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = drawn(*shape, scale=length)
    Muon([weight], lr=0.5).step()
    # Up to what the singular values lack to one.
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=0.3)
    assert (weight * weight.grad).sum() < 0  # down


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has it from 2.9 on")
@pytest.mark.parametrize("shape", [(6, 40), (40, 6)])
def test_it_goes_where_that_of_pytorch_goes(shape):
    ours, theirs = (nn.Parameter(drawn(*shape)) for _ in range(2))
    # Its iterations are in bfloat16.
    pair = Muon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    moved = (ours - drawn(*shape)).norm()
    assert (ours - theirs).norm() < 1e-2 * moved


def test_what_has_no_gradient_stays():
    first, second = (nn.Parameter(drawn(4, 6)) for _ in range(2))
    first.grad = drawn(4, 6)
    Muon([first, second], lr=0.1).step()
    assert torch.equal(second, drawn(4, 6))
    assert not torch.equal(first, second)


def test_it_is_an_optimizer_like_others():
    weight, still, target = nn.Parameter(drawn(4, 6)), nn.Parameter(drawn(4, 6)), drawn(4, 6).flip(0)
    optimizer = Muon([{"params": [weight]}], lr=0.5)
    optimizer.add_param_group({"params": [still], "lr": 0.0})
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

    def distance():
        return (weight - target).square().sum()

    def loss():
        optimizer.zero_grad()
        found = distance() + still.square().sum()
        found.backward()
        return found.detach()

    before, first = still.clone(), distance().detach()
    assert optimizer.step(loss) == first + before.square().sum()
    for _ in range(200):
        optimizer.step(loss)
        schedule.step()
    assert distance() < 1e-3 * first
    assert torch.equal(still, before)
    assert set(optimizer.state[weight]) == {"momentum"}


def test_it_is_for_thin_matrices_and_not_for_vectors_or_tables():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(8, 16, 3),
            "depthwise": nn.Conv2d(16, 16, (3, 1), groups=16),
            "norm": nn.BatchNorm2d(16),
            "linear": nn.Linear(16, 2),
            "long": nn.Linear(512, 600, bias=False),
            "wide": nn.Linear(513, 600, bias=False),
            "row": nn.Linear(16, 1),
            "column": nn.Linear(1, 16),
            "table": nn.Embedding(20, 16),
            "bag": nn.EmbeddingBag(20, 16),
            "frozen": nn.Linear(16, 16).requires_grad_(False),
        }
    )
    found = {id(parameter): is_matrix for parameter, is_matrix in are_matrices(model)}
    named = {name: found[id(parameter)] for name, parameter in model.named_parameters() if id(parameter) in found}
    assert {name for name, is_matrix in named.items() if is_matrix} == {
        "conv.weight",
        "depthwise.weight",
        "linear.weight",
        "long.weight",
    }
    model.register_parameter("number", nn.Parameter(torch.tensor(1.0)))
    assert len(named) == len(list(model.parameters())) - 3
    assert [is_matrix for _, is_matrix in are_matrices(model)].count(True) == 4
    assert not any(name.startswith("frozen") for name in named)


def test_a_weight_that_is_also_a_table_is_taken_as_one_and_once():
    table, head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
    head.weight = table.weight
    assert [is_matrix for _, is_matrix in are_matrices(nn.Sequential(table, head))] == [False]
    assert [is_matrix for _, is_matrix in are_matrices(head)] == [True]
