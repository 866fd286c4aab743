import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.paper import data, training
from examples.paper.augmentation import Draws, augment, draw, paste
from examples.paper.data import Split, Splits
from examples.paper.models import DigitsNet, GaripovNet, seeded
from examples.paper.recipes import RECIPES, Recipe
from examples.paper.train import SETTINGS, load_checkpoint, main, save_checkpoint
from examples.paper.training import Performance, evaluate, train
from tdcompress.errors import CompressionError

SHORT = replace(RECIPES["digits"], epochs=2)
pytestmark = pytest.mark.usefixtures("one_thread")  # networks so small that two would wait for each other


@pytest.fixture(scope="module")
def digits():
    return data.digits()


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def linear_splits(size: int = 40) -> Splits:
    """Two classes of 1×2×2 images that a linear layer tells apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % 2
    images = torch.randn(size, 1, 2, 2, generator=generator) + 4.0 * labels[:, None, None, None]
    part = Split(images, labels)
    return Splits("two clouds", part, part, part, torch.zeros(1), torch.ones(1))


def linear_model(seed: int = 0) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seed)


class TestTrain:
    @pytest.mark.full
    def test_learns_the_digits(self, digits):
        model = seeded(DigitsNet, seed=0)
        before = evaluate(model, digits.test.images, digits.test.labels)
        history = train(model, digits, RECIPES["digits"], seed=0)
        after = evaluate(model, digits.test.images, digits.test.labels)
        assert history.epochs[-1].train_loss < 0.1 < history.epochs[0].train_loss
        assert before.error > 0.5
        assert after.accuracy >= 0.97
        assert after.cross_entropy < before.cross_entropy

    def test_the_same_seed_gives_the_same_weights(self, digits):
        first, second, other = (seeded(DigitsNet, seed=0) for _ in range(3))
        histories = [train(model, digits, SHORT, seed) for model, seed in ((first, 1), (second, 1), (other, 2))]
        assert same_weights(first, second)
        assert not same_weights(first, other)
        assert [epoch.validation for epoch in histories[0].epochs] == [
            epoch.validation for epoch in histories[1].epochs
        ]

    def test_the_global_generators_stay_where_they_are(self, digits):
        before = torch.get_rng_state()
        train(seeded(DigitsNet, seed=0), digits, replace(SHORT, epochs=1, flip=True), seed=5)
        assert torch.equal(torch.get_rng_state(), before)

    def test_keeps_the_best_epochs_weights(self, monkeypatch):
        results = [Performance(0.5, 1.0), Performance(0.2, 3.0), Performance(0.2, 2.0), Performance(0.3, 0.1)]
        seen = []

        def scripted(model, *_, **__):
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            return results[len(seen) - 1]

        monkeypatch.setattr(training, "evaluate", scripted)
        model: Any = linear_model()
        history = train(model, linear_splits(), Recipe(learning_rate=0.1, epochs=4))
        assert history.best_epoch == 2
        assert history.best.validation == results[2]
        assert all(torch.equal(value, seen[2][name]) for name, value in model.state_dict().items())
        assert not torch.equal(model[1].weight, seen[3]["1.weight"])

    @pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (2, 4), (None, 6)])
    def test_stops_when_patience_is_over(self, monkeypatch, patience, epochs):
        errors = iter([0.5, 0.5, 0.5, 0.6, 0.7, 0.4] if patience != 2 else [0.5, 0.4, 0.4, 0.6, 0.7, 0.3])
        monkeypatch.setattr(training, "evaluate", lambda *_, **__: Performance(next(errors), 1.0))
        history = train(linear_model(), linear_splits(), Recipe(learning_rate=0.1, epochs=6, patience=patience))
        assert len(history.epochs) == epochs

    def test_one_step_is_stochastic_gradient_descent(self):
        splits, model = linear_splits(8), linear_model()
        parameter = model.get_parameter("1.weight")
        weight = parameter.detach().clone()
        loss = F.cross_entropy(model(splits.train.images), splits.train.labels)
        (gradient,) = torch.autograd.grad(loss, parameter)
        history = train(model, splits, Recipe(learning_rate=0.5, epochs=1, batch_size=8))
        torch.testing.assert_close(parameter.detach(), weight - 0.5 * gradient)
        assert history.epochs[0].train_loss == pytest.approx(loss.item())
        assert history.seconds == history.epochs[0].seconds

    def test_leftover_images_are_trained_on_too(self):
        sizes = []
        model = linear_model()
        model[1].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        train(model, linear_splits(40), Recipe(learning_rate=0.1, epochs=1, batch_size=16))
        assert sizes[:3] == [16, 16, 8]

    @pytest.mark.full
    def test_bfloat16_and_channels_last_learn_and_leave_ordinary_weights(self, digits):
        model = seeded(DigitsNet, seed=0)
        recipe = replace(RECIPES["digits"], epochs=5, autocast=True, channels_last=True)
        history = train(model, digits, recipe)
        assert history.best.validation.accuracy > 0.8
        assert all(value.dtype != torch.bfloat16 and value.is_contiguous() for value in model.state_dict().values())
        assert not model.training

    @pytest.mark.full
    def test_fine_tuning_changes_a_trained_network_only_a_little(self, digits):
        model = seeded(DigitsNet, seed=0)
        train(model, digits, replace(RECIPES["digits"], epochs=8))
        before = evaluate(model, digits.test.images, digits.test.labels)
        train(model, digits, RECIPES["digits-fine-tuning"], seed=1)
        assert evaluate(model, digits.test.images, digits.test.labels).error <= before.error + 0.02

    def test_divergence_is_reported(self):
        splits = linear_splits()
        splits.train.images[0] = math.nan
        with pytest.raises(CompressionError, match="diverged: the mean loss is nan; lower the recipe's learning_rate"):
            train(linear_model(), splits, Recipe(learning_rate=0.1, epochs=1))

    def test_the_bar_is_optional(self, capsys):
        recipe = Recipe(learning_rate=0.1, epochs=2)
        train(linear_model(), linear_splits(), recipe)
        assert capsys.readouterr().err == ""
        train(linear_model(), linear_splits(), recipe, progress=True)
        assert "epoch 2/2" in capsys.readouterr().err

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_trains_on_a_gpu(self, digits):
        model = seeded(DigitsNet, seed=0).to("cuda")
        history = train(model, digits, replace(RECIPES["digits"], epochs=5, autocast=True))
        assert history.best.validation.accuracy > 0.8
        assert evaluate(model, digits.test.images, digits.test.labels).accuracy > 0.8


class TestEvaluate:
    def test_error_and_cross_entropy(self):
        logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
        labels = torch.tensor([0, 1, 1])
        performance = evaluate(nn.Identity(), logits, labels)
        assert performance.error == pytest.approx(1 / 3)
        assert performance.accuracy == pytest.approx(2 / 3)
        assert performance.cross_entropy == pytest.approx(F.cross_entropy(logits, labels).item())

    def test_the_batch_size_does_not_matter(self, digits):
        model = seeded(DigitsNet, seed=0).double()
        images = digits.test.images.double()
        whole, parts = (evaluate(model, images, digits.test.labels, batch_size=size) for size in (599, 50))
        assert whole.error == parts.error
        assert whole.cross_entropy == pytest.approx(parts.cross_entropy, rel=1e-6)

    def test_leaves_the_network_as_it_was(self, digits):
        model: Any = seeded(DigitsNet, seed=0).train()
        model.bn2.eval()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        evaluate(model, digits.test.images, digits.test.labels)
        assert model.training
        assert model.bn1.training
        assert not model.bn2.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def test_no_images_are_refused(self):
        with pytest.raises(CompressionError, match="no images"):
            evaluate(nn.Identity(), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("seed", range(5))
def test_paste_puts_a_square_of_one_image_at_its_place_in_another(seed):
    images = torch.arange(6.0)[:, None, None, None] + torch.linspace(0, 0.5, 8 * 12).reshape(1, 1, 8, 12)
    before = images.clone()
    pasted = paste(images, torch.Generator().manual_seed(seed))
    assert torch.equal(images, before)
    changed = (pasted != images).flatten(0, 1)
    place = changed.any(0).nonzero()
    assert len(place) in (4, 9, 16, 25, 36)
    assert ((place.max(0).values - place.min(0).values + 1) ** 2 == len(place)).all()  # a whole square
    givers = (pasted - images).flatten(1)[:, changed.any(0).flatten()] + torch.arange(6.0)[:, None]
    torch.testing.assert_close(givers, givers[:, :1].round().expand_as(givers))  # of one image, from the same pixels
    assert sorted(givers[:, 0].round().tolist()) == list(range(6))


class TestAugment:
    def images(self) -> torch.Tensor:
        return torch.arange(1.0, 1 + 200 * 2 * 3 * 4).reshape(200, 2, 3, 4)

    def drawn(self, crop_padding: int, flip: bool, seed: int = 0) -> Draws:
        generator = torch.Generator().manual_seed(seed)
        return draw(200, generator, torch.device("cpu"), crop_padding=crop_padding, flip=flip)

    def test_flips_about_half_and_nothing_else(self):
        images, draws = self.images(), self.drawn(0, flip=True)
        flipped = augment(images, torch.zeros(2), draws)
        assert torch.equal(flipped[draws.mirrored], images.flip(3)[draws.mirrored])
        assert torch.equal(flipped[~draws.mirrored], images[~draws.mirrored])
        assert 60 < draws.mirrored.sum() < 140

    @pytest.mark.parametrize("flip", [False, True])
    def test_crops_are_windows_of_the_padded_image(self, flip):
        images, black = self.images(), torch.tensor([-1.0, -2.0])
        draws = self.drawn(1, flip)
        crops = augment(images, black, draws, crop_padding=1)
        padded = F.pad(images, [1] * 4, value=math.nan)
        padded = torch.where(padded.isnan(), black[:, None, None], padded)
        for number in range(200):
            top, left = int(draws.rows[number]), int(draws.columns[number])
            window = padded[number, :, top : top + 3, left : left + 4]
            assert torch.equal(crops[number], window.flip(2) if draws.mirrored[number] else window)
        assert len({(int(r), int(c)) for r, c in zip(draws.rows, draws.columns, strict=True)}) == 9

    def test_without_either_the_images_stay(self):
        images = self.images()
        assert torch.equal(augment(images, torch.zeros(2), self.drawn(0, flip=False)), images)

    def test_the_same_seed_draws_the_same(self):
        first, second, other = self.drawn(4, True), self.drawn(4, True), self.drawn(4, True, seed=1)
        assert torch.equal(first.rows, second.rows)
        assert not torch.equal(first.rows, other.rows)

    def test_validation_and_test_images_are_not_augmented(self, digits):
        before = digits.validation.images.clone(), digits.test.images.clone()
        train(seeded(DigitsNet, seed=0), digits, replace(SHORT, epochs=1, flip=True))
        assert torch.equal(digits.validation.images, before[0])
        assert torch.equal(digits.test.images, before[1])


class TestSteps:
    def test_an_epoch_may_be_a_sample(self):
        sizes = []
        model = linear_model()
        model[1].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        train(model, linear_splits(40), Recipe(learning_rate=0.1, epochs=1, batch_size=16, samples=20))
        assert sizes[:2] == [16, 4]

    def test_a_compiled_step_does_the_same(self, monkeypatch):
        """The compiler's front end alone: its back end takes half a minute and is PyTorch's to test."""
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
        eager, compiled = linear_model(), linear_model()
        for model, step in ((eager, "eager"), (compiled, "compiled")):
            train(model, linear_splits(), Recipe(learning_rate=0.1, epochs=2, batch_size=16, step=step))
        assert same_weights(eager, compiled)

    def test_auto_is_op_by_op_on_the_cpu(self):
        auto, eager = linear_model(), linear_model()
        for model, step in ((auto, "auto"), (eager, "eager")):
            train(model, linear_splits(), Recipe(learning_rate=0.1, epochs=1, step=step))
        assert same_weights(auto, eager)

    def test_a_graph_needs_cuda(self):
        with pytest.raises(CompressionError, match="a CUDA graph needs a CUDA device, not cpu"):
            train(linear_model(), linear_splits(), Recipe(learning_rate=0.1, epochs=1, step="graph"))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("autocast", [False, True])
    def test_a_graph_does_what_single_ops_do(self, digits, autocast):
        graphed, eager = (seeded(DigitsNet, seed=0).to("cuda") for _ in range(2))
        recipe = replace(SHORT, epochs=1, autocast=autocast)
        histories = [
            train(model, digits, replace(recipe, step=step)) for model, step in ((graphed, "graph"), (eager, "eager"))
        ]
        losses = [history.epochs[0].train_loss for history in histories]
        assert losses[0] == pytest.approx(losses[1], rel=2e-2 if autocast else 1e-3)
        for name, value in graphed.state_dict().items():
            torch.testing.assert_close(value, eager.state_dict()[name], rtol=5e-2, atol=5e-3)


class TestRecipe:
    def test_steps(self):
        recipe = RECIPES["garipov"]
        rates = [recipe.learning_rate_at(epoch) for epoch in (0, 29.9, 30, 60, 90)]
        assert rates == pytest.approx([0.1, 0.1, 1e-2, 1e-3, 1e-4])

    def test_one_cycle(self):
        recipe = Recipe(learning_rate=0.1, epochs=10, schedule="one-cycle")
        rates = [recipe.learning_rate_at(epoch / 10) for epoch in range(101)]
        assert max(rates) == rates[20] == pytest.approx(0.1)
        assert rates[:21] == sorted(rates[:21])
        assert rates[20:] == sorted(rates[20:], reverse=True)
        assert rates[0] == pytest.approx(0.004)
        assert rates[100] == pytest.approx(0.0)

    @pytest.mark.parametrize("setting", ["garipov-fmnist", "garipov-cifar10", "resnet18-cifar10"])
    def test_fine_tuning_starts_at_the_last_learning_rate(self, setting):
        recipe, fine_tuning = SETTINGS[setting].recipe, SETTINGS[setting].fine_tuning
        assert fine_tuning.learning_rate == pytest.approx(recipe.learning_rate_at(recipe.epochs))
        assert fine_tuning.optimizer == recipe.optimizer

    @pytest.mark.parametrize(("capability", "pays"), [("DEFAULT", False), ("AVX2", False), ("AVX512", True)])
    def test_a_cpu_that_is_slow_in_bfloat16_is_spared_it(self, capability, pays, monkeypatch):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        recipe = RECIPES["gpt"]
        assert recipe.autocast
        assert recipe.on("cpu") == replace(recipe, autocast=pays)
        assert recipe.on("cuda") == recipe
        assert RECIPES["digits"].on("cpu") == RECIPES["digits"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"optimizer": "lion"}, "unknown optimizer 'lion'; choose one of sgd, adam"),
            ({"schedule": "linear"}, "unknown schedule 'linear'; choose one of steps, one-cycle"),
            ({"learning_rate": 0.0}, "learning_rate must be above 0, found 0.0"),
            ({"epochs": 0}, "epochs must be at least 1, found 0"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"patience": 0}, "patience must be at least 1"),
            ({"crop_padding": -1}, "crop_padding must be at least 0"),
            ({"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum above 0"),
        ],
    )
    def test_bad_recipes_are_refused(self, change, message):
        with pytest.raises(CompressionError, match=message):
            replace(RECIPES["garipov"], **change)


class TestCheckpoints:
    def test_saving_and_loading_is_the_identity(self, tmp_path):
        model, other = seeded(DigitsNet, seed=0), seeded(DigitsNet, seed=1)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        save_checkpoint(model, tmp_path / "new" / "a.safetensors", {"a": "b"})
        assert load_checkpoint(other, tmp_path / "new" / "a.safetensors") == {"a": "b"}
        assert same_weights(model, other)

    def test_another_architecture_is_refused(self, tmp_path):
        save_checkpoint(DigitsNet(), tmp_path / "digits.safetensors", {})
        with pytest.raises(CompressionError, match=r"digits.safetensors: does not fit GaripovNet"):
            load_checkpoint(GaripovNet(in_channels=1), tmp_path / "digits.safetensors")

    def test_missing_and_broken_files_are_refused(self, tmp_path):
        with pytest.raises(CompressionError, match="no such file"):
            load_checkpoint(DigitsNet(), tmp_path / "missing.safetensors")
        (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
        with pytest.raises(CompressionError, match=r"broken.safetensors"):
            load_checkpoint(DigitsNet(), tmp_path / "broken.safetensors")

    def test_the_command_line_writes_one(self, tmp_path, capsys):
        output = tmp_path / "digits.safetensors"
        main(["digits", "--epochs", "1", "--seed", "3", "--quiet", "--output", str(output)])
        notes = load_checkpoint(seeded(DigitsNet, seed=0), output)
        assert notes["command"].startswith("python -m examples.paper.train digits --epochs 1 --seed 3")
        assert 0 <= float(notes["test_accuracy"]) <= 1
        assert f"saved: {output}" in capsys.readouterr().out

    def test_the_command_line_refuses_data_for_the_digits(self):
        with pytest.raises(CompressionError, match="leave --data out"):
            main(["digits", "--data", "somewhere"])
