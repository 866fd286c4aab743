"""Parameters that layers share."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td


def tied_model(**second):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, **second))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("inplace", [False, True])
def test_cutting_a_tie_is_refused(inplace):
    model = tied_model()
    with pytest.raises(td.CompressionError, match=r"layer '0': it shares a parameter with '2.weight'; decompose both"):
        td.decompose(model, "0", "cp", 0.5, inplace=inplace)
    assert model[0].weight is model[2].weight
    assert "shares a parameter" in td.refusals(nn.Sequential(tied_to_linear()), "cp")["0.0"]


def tied_to_linear():
    model: Any = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ParameterList())
    model[1].append(model[0].weight)
    return model


@pytest.mark.parametrize("method", ["cp", "svd", "tt", "tucker"])
@pytest.mark.parametrize("inplace", [False, True])
def test_layers_that_share_a_weight_share_their_factors(method, inplace):
    model = tied_model(stride=2)
    small: Any = td.decompose(model, "*", method, 0.5, inplace=inplace)
    assert all(one.weight is two.weight for one, two in zip(small[0], small[2], strict=True))
    assert small[0].bias is not small[2].bias
    x = torch.randn(1, 8, 6, 6)
    assert torch.allclose(small(x), td.restore(small)(x), atol=1e-5)
    dense: Any = td.restore(small)
    assert dense[0].weight is dense[2].weight
    with pytest.raises(td.CompressionError, match=r"it shares a parameter with '2.\w+.weight'"):
        td.restore(small, "0")


def test_a_shared_bias_stays_shared():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].bias = model[0].bias
    small: Any = td.decompose(model, "*", "tucker", 0.5)
    assert small[0].bias is small[1].bias
    dense: Any = td.restore(small)
    assert dense[0].bias is dense[1].bias


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_weights_are_computed_from_cannot_be_shared():
    model = nn.Sequential(*(nn.utils.weight_norm(nn.Conv2d(8, 8, 3)) for _ in range(2)))
    model[1].weight_v = model[0].weight_v
    with pytest.raises(td.CompressionError, match=r"layer '0': it shares a parameter with '1.weight_v'"):
        td.decompose(model, "*", "tucker", 0.5, parametrized="bake")


def test_factors_that_cannot_be_shared_are_refused():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3))
    model[1].weight = model[0].weight
    with pytest.raises(td.CompressionError, match=r"layer '1': it shares its weight with '0', but"):
        td.decompose(model, "*", "tucker", 0.5)
    assert model[1].weight is model[0].weight


# --- an embedding and the head that is tied to it ---------------------------------------------------------


class Tied(nn.Module):
    """Words to words; the head's bias is held by the model, too, as in BERT."""

    def __init__(self, bias=True, padding_idx=None):
        super().__init__()
        self.words, self.mix = nn.Embedding(40, 12, padding_idx=padding_idx), nn.Linear(12, 12)
        self.head = nn.Linear(12, 40, bias=bias)
        self.head.weight = self.words.weight
        if bias:
            self.bias = self.head.bias

    def forward(self, x):
        return self.head(self.mix(self.words(x)).tanh())


TOKENS = torch.arange(40).reshape(4, 10)


def tied(**how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tied(**how)


def assert_tied(model, bias=True):
    words, head = model.words, model.head
    if isinstance(words, td.FactorizedConv):
        assert [type(stage) for stage in words] == [nn.Embedding, nn.Linear]
        assert [type(stage) for stage in head] == [td.TransposedLinear, nn.Linear]
        assert head[0].weight is words[1].weight
        assert head[1].weight is words[0].weight
    else:
        assert head.weight is words.weight
    if bias:
        assert model.head.bias is model.bias


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("names", [["words", "head"], ["head", "words"], "*"])
def test_a_tied_head_shares_the_factors_of_its_embedding(names, bias, inplace, tmp_path):
    model = tied(bias=bias, padding_idx=2)
    small: Any = td.decompose(model, names, "svd", 0.3, inplace=inplace)
    assert_tied(small, bias)
    torch.testing.assert_close(small.head.weight, small.words.weight)
    assert small.head.ratio == small.words.ratio >= 0.3
    assert small.words[0].padding_idx == 2
    expected = small(TOKENS)
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert_tied(other, bias)
        assert torch.equal(other(TOKENS), expected)
    assert_tied(copy.deepcopy(small).double(), bias)
    dense = td.restore(small)
    assert_tied(dense, bias)
    torch.testing.assert_close(dense(TOKENS), expected)
    td.save(small, tmp_path / "small.safetensors")
    for into in (tied(bias=bias, padding_idx=2), copy.deepcopy(small), tied(bias=bias, padding_idx=2).to("meta")):
        if into.words.weight.is_meta:
            into.head.weight = into.words.weight  # a move to meta cuts ties
            into.bias = into.head.bias
        loaded = td.load(tmp_path / "small.safetensors", into=into)
        assert_tied(loaded, bias)
        assert torch.equal(loaded(TOKENS), expected)
    assert_tied(td.restore(small, inplace=True), bias)


def test_at_full_rank_it_is_the_original():
    model = tied().double()
    with pytest.warns(UserWarning, match="larger"):
        small = td.decompose(model, ["head", "words"], "svd", rank=12)
    torch.testing.assert_close(small(TOKENS), model(TOKENS))


def test_a_tied_weight_is_decomposed_once(monkeypatch):
    solved = []
    solve = td.SVDConv.solve
    monkeypatch.setattr(td.SVDConv, "solve", staticmethod(lambda *how: solved.append(how) or solve(*how)))
    td.decompose(tied(), ["head", "words"], "svd", 0.3)
    assert len(solved) == 1


def test_one_of_the_two_alone_is_refused_and_left_with_the_other():
    model = tied()
    with pytest.raises(
        td.CompressionError, match=r"layer 'head': it shares a parameter with 'words.weight'; decompose b"
    ):
        td.decompose(model, "head", "svd", 0.3)
    with pytest.raises(
        td.CompressionError, match=r"layer 'words': it shares a parameter with 'head.weight'; decompose b"
    ):
        td.decompose(model, "words", "svd", 0.3)
    small = td.decompose(model, "*", "svd", 0.3, skip="head", on_refusal="skip")
    assert_tied(small)
    assert type(small.words) is nn.Embedding
    assert isinstance(small.mix, td.SVDConv)
    whole = td.decompose(model, "*", "svd", 0.3)
    with pytest.raises(td.CompressionError, match=r"it shares a parameter with 'words.input.weight'"):
        td.restore(whole, "head")


def test_training_steps_change_both_and_the_optimizer_knows_each_factor_once():
    model = tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(TOKENS).sum().backward()
    optimizer.step()
    small: Any = td.decompose(model, "*", "svd", 0.3)
    td.replace_parameters(optimizer, model, small)
    mine = optimizer.param_groups[0]["params"]
    assert len(mine) == len({id(one) for one in mine}) == len(list(small.parameters()))
    before = [one.detach().clone() for one in small.parameters()]
    nn.functional.cross_entropy(small(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
    optimizer.step()
    assert all(not torch.equal(one, old) for one, old in zip(small.parameters(), before, strict=True))
    torch.testing.assert_close(small.head.weight, small.words.weight)
    assert_tied(small)


def test_gradients_are_those_of_the_tied_dense_weights():
    small: Any = td.decompose(tied().double(), "*", "svd", 0.3)
    small(TOKENS).square().sum().backward()
    left, right = small.words[0].weight, small.words[1].weight
    found = left.grad, right.grad
    product = (left.detach().requires_grad_(), right.detach().requires_grad_())
    weight = product[0] @ product[1].T
    out = (
        weight[TOKENS] @ small.mix.weight.detach().T + small.mix.bias.detach()
    ).tanh() @ weight.T + small.bias.detach()
    for ours, theirs in zip(found, torch.autograd.grad(out.square().sum(), product), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_head_and_the_whole_are_exported():
    small: Any = td.decompose(tied(), "*", "svd", 0.3).eval()
    x = torch.randn(3, 12)
    torch.testing.assert_close(torch.export.export(small.head, (x,)).module()(x), small.head(x))
    torch.testing.assert_close(torch.export.export(small, (TOKENS,)).module()(TOKENS), small(TOKENS))


def test_data_does_not_whiten_nor_refit_what_an_embedding_shares():
    model, data = tied(), [TOKENS]
    moments = td.input_moments(model, data)
    assert sorted(moments) == ["head", "mix"]
    assert td.input_moments(model, data, "words") == {}
    small: Any = td.decompose(model, "*", "svd", 0.3, whiten=moments)
    plain: Any = td.decompose(model, "*", "svd", 0.3)
    assert torch.equal(small.words.weight, plain.words.weight)
    fitted: Any = td.calibrate(small, data, model)
    assert_tied(fitted)
    assert torch.equal(fitted.words.weight, small.words.weight)
    assert (fitted(TOKENS) - model(TOKENS)).norm() < (small(TOKENS) - model(TOKENS)).norm()


def test_several_embeddings_and_a_head_share_one_pair_of_factors():
    model = nn.ModuleDict({"head": nn.Linear(8, 30), "one": nn.Embedding(30, 8), "two": nn.Embedding(30, 8)})
    model["one"].weight = model["two"].weight = model["head"].weight
    small: Any = td.decompose(model, "*", "svd", 0.3)
    assert small["one"][0].weight is small["two"][0].weight is small["head"][1].weight
    assert small["one"][1].weight is small["two"][1].weight is small["head"][0].weight


def test_a_bias_that_another_layer_holds_is_no_home_of_it():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].bias = model[0].bias
    with pytest.raises(td.CompressionError, match=r"layer '0': it shares a parameter with '1.bias'"):
        td.decompose(model, "0", "svd", 0.3)


def test_the_report_counts_tied_factors_once():
    model = tied()
    found = td.report(td.decompose(model, "*", "svd", 0.3))
    assert found.total.parameters[0] == sum(parameter.numel() for parameter in model.parameters())


def test_a_swap_in_place_that_fails_leaves_the_bias_where_it_was(monkeypatch):
    model = tied()
    bias = model.bias

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tdcompress.surgery.swap.keep_left", fail)
    with pytest.raises(KeyboardInterrupt):
        td.decompose(model, "*", "svd", 0.3, inplace=True)
    assert model.bias is bias is model.head.bias
    assert_tied(model)
