import copy
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tdcompress as td
from examples.paper import __main__ as command
from examples.paper import strategies as module
from examples.paper.compared import only_the_first, report, won_back
from examples.paper.conditioning import conditioning, sensitivity
from examples.paper.data import digits
from examples.paper.evaluation import cross_entropy
from examples.paper.lengths import rescale
from examples.paper.models import DigitsNet, seeded
from examples.paper.objectives import Decayed, Distilled
from examples.paper.presets import PRESETS
from examples.paper.recipes import RECIPES
from examples.paper.strategies import STRATEGIES, Tuning
from examples.paper.train import save_checkpoint
from examples.paper.training import train
from examples.paper.work import Source
from tdcompress.errors import CompressionError
from tests.drawing import more
from tests.examples.test_study import numbers

BASE = replace(RECIPES["digits-fine-tuning"], epochs=1, samples=128)
SOURCE = Source("digits")
SHOWN = ("paper", "distill", "layer-first")
TINY = ["digits", "--layers", "conv[34]", "--methods", "cp", "tucker", "--ratios", "0.9", "--runs", "2"]
TINY += ["--finetune-epochs", "1", "--images", "50", "--quiet"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Every test."""


@pytest.fixture(scope="module")
def model():
    """A network that has learnt a little."""
    network = seeded(DigitsNet, 0)
    train(network, digits(), replace(RECIPES["digits"], epochs=1))
    return network.eval()


@pytest.fixture
def small(model):
    return td.decompose(model, "conv3", "cp", 0.75)


def tuned(strategy, small, model, seed=0):
    return Tuning(strategy, SOURCE, model)(copy.deepcopy(small), seed)


def changed(first, second):
    """The names of the parameters that differ."""
    there = dict(second.named_parameters())
    return {name for name, value in first.named_parameters() if not torch.equal(value, there[name])}


class TestStrategies:
    @pytest.mark.parametrize("name", [*SHOWN, *more(*(one for one in STRATEGIES if one not in SHOWN))])
    def test_each_trains_reproducibly_and_leaves_a_network_that_can_be_trained_on(self, name, small, model):
        before = copy.deepcopy(model.state_dict())
        first, second = (tuned(STRATEGIES[name](BASE), small, model) for _ in range(2))
        assert changed(first, small)
        assert not changed(first, second)
        assert all(parameter.requires_grad for parameter in first.parameters())
        assert not first.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_they_differ(self):
        assert len({repr(make(BASE)) for make in STRATEGIES.values()}) == len(STRATEGIES)

    def test_all_see_the_images_of_the_base_as_often(self):
        recipes = [recipe for make in STRATEGIES.values() for recipe in make(BASE).recipes]
        assert {(recipe.epochs, recipe.samples, recipe.batch_size) for recipe in recipes} == {(1, 128, 64)}

    def test_the_paper_s_is_sgd_at_its_last_rate(self):
        recipe = RECIPES["garipov-fine-tuning"]
        assert STRATEGIES["paper"](recipe).recipes == (recipe,)

    def test_norms_and_head_are_all_that_moves(self, small, model):
        moved = changed(tuned(STRATEGIES["norms-head"](BASE), small, model), small)
        assert {name.split(".")[0] for name in moved} == {"bn1", "bn2", "bn3", "bn4", "fc"}

    def test_layer_first_trains_the_factors_alone_and_then_all(self, small, model, monkeypatch):
        trainable = []

        def noted(network, splits, recipe, *arguments, **options):
            names = {name.split(".")[0] for name, one in network.named_parameters() if one.requires_grad}
            trainable.append((recipe.epochs, names))
            return train(network, splits, recipe, *arguments, **options)

        monkeypatch.setattr(module, "train", noted)
        tuned(STRATEGIES["layer-first"](replace(BASE, epochs=3)), small, model)
        assert trainable[0] == (1, {"conv3"})
        assert trainable[1][0] == 2
        assert len(trainable[1][1]) == 9

    def test_the_rate_is_the_one_with_the_best_validation_result(self, small, model):
        recipes = STRATEGIES["rate"](BASE).recipes
        alone = []
        for recipe in recipes:
            network = copy.deepcopy(small)
            best = train(network, digits(), recipe, 0).best.validation
            alone.append(((best.error, best.cross_entropy), network))
        chosen = min(alone, key=lambda one: one[0])[1]
        assert not changed(tuned(STRATEGIES["rate"](BASE), small, model), chosen)

    def test_without_labels_no_label_is_read(self, small, model, monkeypatch):
        with_labels = tuned(STRATEGIES["distill"](BASE), small, model)
        splits = digits()
        hidden = {
            name: replace(part, labels=torch.full_like(part.labels, 99))
            for name, part in vars(splits).items()
            if name in ("train", "validation", "test")
        }
        monkeypatch.setattr(Source, "splits", lambda self: replace(splits, **hidden))
        assert not changed(tuned(STRATEGIES["distill"](BASE), small, model), with_labels)

    def test_version_tells_recipes_apart(self, model):
        versions = {Tuning(STRATEGIES["adam"](replace(BASE, epochs=n)), SOURCE, model).version for n in (1, 2)}
        assert len(versions) == 2


class TestObjectives:
    images = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def test_distillation_is_the_tempered_divergence(self):
        original, other = (seeded(lambda: nn.Linear(4, 3), seed) for seed in (0, 1))
        logits = other(self.images)
        wanted, found = (F.softmax(both / 4, dim=-1) for both in (original(self.images), logits))
        divergence = 16 * (wanted * (wanted / found).log()).sum(dim=-1).mean()
        loss = Distilled(original, labels=False)(self.images, logits, self.labels)
        assert loss.item() == pytest.approx(divergence.item(), rel=1e-5)
        both = Distilled(original, labels=True)(self.images, logits, self.labels)
        half = (divergence + cross_entropy(logits, self.labels)) / 2
        assert both.item() == pytest.approx(half.item(), rel=1e-5)

    def test_decay_pulls_at_the_layer_s_own_weight(self, small):
        images, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
        network = small
        loss = Decayed(network, 0.1)(images, network(images), labels)
        squares = network.conv3.weight.square().sum()
        factors = {f"conv3.{name}.weight" for name, _ in network.conv3.named_children()}
        squares = squares + sum(p.square().sum() for name, p in network.named_parameters() if name not in factors)
        assert loss.item() == pytest.approx((cross_entropy(network(images), labels) + 0.05 * squares).item(), rel=1e-5)


class TestLengths:
    @pytest.mark.parametrize("method", ["cp", "tucker", "tt", "svd", "btd"])
    @pytest.mark.parametrize("lengths", ["balanced", "raw"])
    def test_leave_the_layer_as_it_is(self, method, lengths, model):
        layer: Any = td.decompose(model, "conv3", method, 0.5).conv3.double()
        before = layer.weight.detach()
        rescale(layer, lengths)
        torch.testing.assert_close(layer.weight, before, rtol=1e-10, atol=1e-12)
        stages = list(layer)
        if lengths == "raw":
            for stage in stages[:-1]:
                torch.testing.assert_close(stage.weight.flatten(1).norm(dim=1), torch.ones(len(stage.weight)).double())
        else:
            written = stages[0].weight.flatten(1).norm(dim=1)
            after = stages[1]
            grouped = after.weight.reshape(after.groups, len(after.weight) // after.groups, after.weight.shape[1], -1)
            torch.testing.assert_close(written, grouped.norm(dim=(1, 3)).flatten())

    def test_balanced_factors_feel_noise_least(self, small):
        found = {}
        for lengths in ("balanced", "raw"):
            layer = copy.deepcopy(small.conv3)
            rescale(layer, lengths)
            found[lengths] = sensitivity(layer)
        assert found["balanced"] < found["raw"]

    def test_what_is_refused(self, small, model):
        with pytest.raises(CompressionError, match="unknown lengths 'long'; choose one of balanced, raw"):
            rescale(small.conv3, "long")
        with pytest.raises(CompressionError, match="are no plain convolutions"):
            rescale(td.HTConv.from_conv(model.conv3, ratio=0.5), "raw")


class TestConditioning:
    def test_of_cp_it_is_the_decomposition_s_sensitivity(self, model):
        layer: Any = td.decompose(model, "conv3", "cp", 0.5).conv3
        assert sensitivity(layer) == pytest.approx(layer.solution.sensitivity, rel=0.1)

    def test_gradients_are_those_of_the_loss(self, small):
        splits = digits()
        images, labels = splits.train.images[:32], splits.train.labels[:32]
        with torch.no_grad():  # as evaluations are called
            found = conditioning(small, images, labels)
        cross_entropy(small(images), labels).backward()
        for number, stage in enumerate(small.conv3, start=1):
            assert found[f"gradient{number}"] == pytest.approx(stage.weight.grad.norm().item(), rel=1e-5)
        assert len(found) == 5

    def test_none_of_a_network_without_factors(self, model):
        assert conditioning(model, torch.zeros(1, 1, 8, 8), torch.tensor([0])) == {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("strategies")
    save_checkpoint(model, folder / "model.safetensors", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "draw_all", lambda *_, **__: [])  # the figures of every study are not of these tests
        assert command.main([*TINY, "--strategies", "paper", "distill", "--output", str(folder)]) == 0
    return folder


class TestStudy:
    @pytest.mark.full
    def test_every_strategy_is_reported(self, finished):
        text = (finished / "strategies.md").read_text()
        for title in ("What each strategy reaches", "By method", "τ-a of relative weights", "random starts"):
            assert title in text
        assert text.count("| distill |") == 5
        assert (finished / "strategies.png").exists()

    @pytest.mark.full
    def test_what_a_table_says_is_in_the_results(self, finished):
        frame = pd.read_csv(finished / "results.csv")
        mean = 100 * frame.loc[frame["ratio"] == 0.9, "finetuned[distill]_test_error"].mean()
        first = (finished / "strategies.md").read_text().split("**By method")[0]
        (line,) = (line for line in first.splitlines() if line.startswith("| distill |"))
        assert line.split(" | ")[1] == f"{mean:.2f}"

    @pytest.mark.usefixtures("briefly")
    @pytest.mark.full  # a quick run has tests/study/test_strategies.py
    def test_one_more_leaves_the_others_results(self, finished, monkeypatch):
        before = pd.read_csv(finished / "results.csv")
        calls = []
        monkeypatch.setattr(module, "train", lambda *a, **k: calls.append(a) or train(*a, **k))
        names = ["paper", "distill", "norms-head"]
        assert command.main([*TINY, "--strategies", *names, "--output", str(finished)]) == 0
        assert len(calls) == 8
        after = numbers(pd.read_csv(finished / "results.csv"))
        pd.testing.assert_frame_equal(after[list(numbers(before))], numbers(before))

    def test_unknown_ones_are_refused(self):
        with pytest.raises(CompressionError, match="unknown strategy 'luck'; choose among paper, rate"):
            replace(PRESETS["digits"], strategies=("luck",))
        with pytest.raises(CompressionError, match="digits-resnet is not fine-tuned"):
            replace(PRESETS["digits-resnet"], strategies=("adam",))


class TestReport:
    def test_nothing_without_names(self, tmp_path):
        frame = pd.DataFrame({"finetuned_test_error": [0.1]})
        assert report(tmp_path, frame, {}) == []
        pd.testing.assert_frame_equal(only_the_first(frame), frame)

    def test_the_first_alone_stays(self):
        columns = ["test_error", "finetune[a]_seconds", "finetuned[a]_test_error"]
        columns += ["finetune[b]_seconds", "finetuned[b]_test_error"]
        assert list(only_the_first(pd.DataFrame(columns=columns))) == columns[:3]

    def test_nothing_won_back_is_zero_and_everything_is_one(self):
        frame = pd.DataFrame({"e": [0.2, 0.4], "a_e": [0.2, 0.4], "b_e": [0.1, 0.1], "c_e": [0.3, 0.7]})
        shares = [won_back(frame, prefix, "e", {"e": 0.1}) for prefix in ("a_", "b_", "c_")]
        assert shares == pytest.approx([0.0, 1.0, -1.0])
