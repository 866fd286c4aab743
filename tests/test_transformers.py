"""Transformers of other people: Conv1D, embeddings, tied heads; decompose, train, save, load, generate, export."""

import copy
import functools
import os
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from examples.paper.models import seeded
from tdcompress.surgery.ties import tied_groups

os.environ["HF_HUB_OFFLINE"] = "1"  # every model is built from a configuration; nothing may be fetched
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the models need the extra dev")
    from transformers.pytorch_utils import Conv1D

WORDS = 199
TOKENS = torch.randint(WORDS, (2, 12), generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def gpt2():
    config = transformers.GPT2Config(
        n_layer=2, n_embd=64, n_head=4, vocab_size=WORDS, n_positions=32, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert():
    """Its head is tied to the word embeddings, and a module around the head holds the head's bias."""
    config = transformers.BertConfig(
        vocab_size=WORDS, max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZES
    )
    return transformers.BertForMaskedLM(config)


def t5():
    """Two stacks read one embedding, and the head is tied to it."""
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=WORDS, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=32, patch_size=8, num_labels=4, **SIZES)
    )


MODELS = {build.__name__: build for build in (gpt2, bert, t5, vit)}
TIED = {  # the embedding and the head
    "gpt2": ("transformer.wte", "lm_head"),
    "bert": ("bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    "t5": ("shared", "lm_head"),
}
every_model = pytest.mark.parametrize("name", list(MODELS))
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@functools.cache
def built(name, seed):
    return seeded(MODELS[name], seed).eval()


def build(name, seed=0):
    return copy.deepcopy(built(name, seed))


def inputs(name):
    if name == "vit":
        return {"pixel_values": IMAGE}
    if name == "t5":
        return {"input_ids": TOKENS, "decoder_input_ids": TOKENS.flip(1), "use_cache": False}
    return {"input_ids": TOKENS, **({"use_cache": False} if name == "gpt2" else {})}


def logits(model, name):
    return model(**inputs(name)).logits


@functools.cache
def compressed(name):
    return td.decompose(built(name, 0), "*", "svd", 0.3)


def decomposed(name):
    return copy.deepcopy(compressed(name))


def dense_layers(model):
    kinds = (nn.Linear, nn.Embedding, nn.Conv2d, Conv1D)
    return [name for name, module in model.named_modules(remove_duplicate=False) if type(module) in kinds]


def assert_tied(model, name):
    if name not in TIED:
        return
    words, head = map(model.get_submodule, TIED[name])
    if isinstance(words, td.FactorizedConv):
        assert head[0].weight is words[1].weight
        assert head[1].weight is words[0].weight
    else:
        assert head.weight is words.weight
    if name == "bert":
        assert model.cls.predictions.bias is head.bias


@every_model
def test_every_layer_is_decomposed_and_ties_are_kept_there_and_back(name, tmp_path):
    model = build(name)
    small = decomposed(name)
    assert dense_layers(model)
    assert all(isinstance(small.get_submodule(layer), td.FactorizedConv) for layer in dense_layers(model))
    assert_tied(small, name)
    found = logits(small, name)
    assert found.shape == logits(model, name).shape
    dense = td.restore(small)
    assert_tied(dense, name)
    assert dense_layers(dense) == dense_layers(model)
    assert list(dense.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(logits(dense, name), found, atol=1e-4, rtol=1e-4)
    td.save(small, tmp_path / "small.safetensors")
    loaded = td.load(tmp_path / "small.safetensors", into=build(name, seed=1))
    assert_tied(loaded, name)
    assert torch.equal(logits(loaded, name), found)
    assert_tied(copy.deepcopy(small).to(torch.float64), name)
    inplace = td.decompose(build(name), "*", "svd", 0.3, inplace=True)
    assert_tied(inplace, name)
    assert torch.equal(logits(inplace, name), found)
    total = td.report(small).total.parameters
    assert total == tuple(sum(parameter.numel() for parameter in one.parameters()) for one in (model, small))


@every_model
@pytest.mark.filterwarnings("ignore:.* makes the layer larger")
def test_at_full_rank_it_is_the_original(name):
    model = small = build(name)
    modules = {id(module): (layer, module) for layer, module in model.named_modules() if layer in dense_layers(model)}
    for group in tied_groups(list(modules.values())):
        rank = min(group[0][1].get_parameter("weight").flatten(1).shape)
        small = td.decompose(small, [layer for layer, _ in group], "svd", rank=rank)
    assert all(isinstance(small.get_submodule(layer), td.FactorizedConv) for layer in dense_layers(model))
    torch.testing.assert_close(logits(small, name), logits(model, name), atol=1e-4, rtol=1e-4)


@every_model
def test_a_step_of_training_reaches_every_factor(name):
    small = decomposed(name).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    found = logits(small, name)
    goal = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (found - goal).square().mean().backward()
    weights = [p for layer in small.modules() if isinstance(layer, td.FactorizedConv) for p in layer.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weights)
    before = {id(p): p.detach().clone() for p in weights if p.ndim > 1}
    optimizer.step()
    assert all(not torch.equal(p, before[id(p)]) for p in weights if p.ndim > 1)
    assert_tied(small, name)


@every_model
def test_exported_it_does_the_same(name):
    small = decomposed(name)
    with torch.no_grad():
        program = torch.export.export(small, (), inputs(name), strict=False)
        torch.testing.assert_close(program.module()(**inputs(name)).logits, logits(small, name), atol=1e-4, rtol=1e-4)


@every_model
def test_compressed_with_data_it_is_nearer_to_the_original(name):
    model, data = build(name), [inputs(name)]
    small = td.compress(model, 0.4, methods="svd", data=data, progress=False)
    assert any(isinstance(layer, td.FactorizedConv) for layer in small.modules())
    plain = td.plan(model, 0.4, methods="svd", progress=False).apply(model, progress=False)
    goal = logits(model, name)
    assert (logits(small, name) - goal).norm() < (logits(plain, name) - goal).norm()
    assert_tied(small, name)


@every_model
def test_distilled_it_is_nearer_to_the_original_and_ties_stay(name):
    model, small = build(name), decomposed(name)
    before = copy.deepcopy(model.state_dict())
    options = td.DistillationOptions(passes=3, local=None, batch_size=2)
    found = td.distill(small, [inputs(name)] * 3, model, options=options)
    assert found.after < found.before
    assert_tied(found.model, name)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_gpt2_is_made_of_conv1d_and_generates():
    model = build("gpt2")
    small: Any = td.decompose(model, "transformer.h.*", "svd", 0.5)
    layer: Any = small.transformer.h[0].mlp.c_fc
    assert [type(stage) for stage in layer] == [nn.Linear, nn.Linear]
    assert (layer.nf, layer.nx, tuple(layer.weight.shape)) == (256, 64, (64, 256))
    assert isinstance(layer, td.SVDConv)
    assert type(td.restore(small).get_submodule("transformer.h.0.mlp.c_fc")) is Conv1D
    for one in (small, decomposed("gpt2")):
        found = one.generate(TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert found.shape[1] <= 16
        again = one.generate(TOKENS, max_new_tokens=1, do_sample=False, pad_token_id=0, use_cache=False)
        assert torch.equal(again[:, -1], logits(one, "gpt2")[:, -1].argmax(-1))


@pytest.mark.parametrize("name", list(TIED))
def test_a_tied_head_or_embedding_alone_is_refused(name):
    model = build(name)
    for layer in TIED[name]:
        with pytest.raises(td.CompressionError, match=r"it shares a parameter with .*decompose both"):
            td.decompose(model, layer, "svd", 0.3)
    small = td.decompose(model, TIED[name], "svd", 0.3) if name != "t5" else decomposed(name)
    assert_tied(small, name)


def test_an_optimizer_goes_on_with_tied_factors():
    model = build("gpt2").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    logits(model, "gpt2").square().mean().backward()
    optimizer.step()
    small = td.decompose(model, "*", "svd", 0.3)
    td.replace_parameters(optimizer, model, small)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in small.parameters()}
    logits(small, "gpt2").square().mean().backward()
    optimizer.step()
    assert_tied(small, "gpt2")


def test_the_loss_of_a_language_model_is_foreseen_a_token():
    model = seeded(gpt2, 0).eval()
    layers = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]
    small = td.decompose(model, layers, "svd", 0.3)
    tokens = torch.randint(WORDS, (24, 16), generator=torch.Generator().manual_seed(1))
    for data in (tokens, [{"input_ids": part} for part in tokens.split(10)]):
        errors = td.approximation_errors(model, small, ["predicted_loss", "output_divergence"], data)
        for name in layers:
            alone = copy.deepcopy(model)
            alone.set_submodule(name, small.get_submodule(name))
            with torch.no_grad():
                before, after = (one(tokens).logits.log_softmax(-1) for one in (model, alone))
            expected = float((before.exp() * (before - after)).sum(-1).mean())
            assert errors[name]["output_divergence"] == pytest.approx(expected, rel=1e-3)
            assert errors[name]["predicted_loss"] == pytest.approx(expected, rel=0.3)
