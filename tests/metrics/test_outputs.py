"""Errors of outputs: against finite changes, per-sample gradients and closed forms."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tdcompress as td
from tdcompress.fisher import fisher_factors
from tdcompress.metrics import METRICS, get_metrics
from tdcompress.outputs import Output, drawn_gradient, read_output
from tests.layers.strategies import a_spec, an_input, fresh

OUTPUTS = ["output_divergence", "predicted_loss"]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double().eval()


def classifier():
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3, groups=2),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
            nn.Flatten(),
            nn.Linear(144, 5),
        )
    )


def kl(model, change, inputs):
    """The mean divergence after a layer's weight has moved by what `change` adds in place."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        change(moved)
        before, after = (one(inputs).log_softmax(-1) for one in (model, moved))
    return float((before.exp() * (before - after)).sum(-1).mean())


class TestDrawnGradient:
    def test_its_second_moment_is_the_information_of_the_logits(self):
        logits = torch.tensor([2.0, 0.0, -1.0, 1.0], dtype=torch.float64)
        p = logits.softmax(0)
        found = drawn_gradient(Output(logits.expand(50_000, 4), True), torch.Generator().manual_seed(0))
        assert (found.mT @ found / len(found)).numpy() == pytest.approx(
            (p.diag() - torch.outer(p, p)).numpy(), abs=3e-3
        )
        assert float(found.sum(1).abs().max()) < 1e-12  # a shift of all logits changes nothing

    def test_one_draw_knows_the_information_of_sure_predictions(self):
        """A label that is drawn would be the one of a million for which the other class shows at all."""
        sure = Output(torch.tensor([[14.0, 0.0, 0.0]], dtype=torch.float64).expand(64, 3), True)
        p = sure.values[0].softmax(0)
        found = drawn_gradient(sure, torch.Generator().manual_seed(0))
        moment = found.square().mean(0)
        assert moment[1:].numpy() == pytest.approx((p * (1 - p))[1:].numpy(), rel=1e-2)


class TestPredictedLoss:
    def test_is_the_fisher_form_where_the_factors_are_exact(self):
        """One position, one input: E[aaᵀ ⊗ ggᵀ] is A ⊗ G, and the form that of diag(p) − ppᵀ."""
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))
        sample = drawn(1, 4)
        change = drawn(6, 4, seed=1)
        factors = fisher_factors(model, sample.expand(500, 4), draws=40)["0"]
        (jacobian,) = torch.autograd.functional.jacobian(
            lambda weight: (model[2](torch.tanh(F.linear(sample, weight, model[0].bias))),), model[0].weight
        )
        moved = torch.einsum("coi,oi->c", jacobian[0], change)
        p = model(sample)[0].softmax(0).detach()
        exact = float(moved @ (torch.diag(p) - torch.outer(p, p)) @ moved) / 2
        # 20 000 draws: the mean of a quantity whose spread is about its size.
        assert factors.loss(change) == pytest.approx(exact, rel=0.04)

    @pytest.mark.parametrize("logits", [True, False])
    def test_is_the_definition_by_gradients_of_single_samples(self, logits):
        """½ tr(G D A Dᵀ) with A and G written out from autograd's gradients of each sample."""
        model, inputs = classifier(), drawn(12, 3, 9, 9)
        factors = fisher_factors(model, inputs, "3", draws=400, logits=logits)["3"]
        groups, change = 2, drawn(6, 4, 3, 3, seed=2)
        outer, inner = torch.zeros(groups, 3, 3).double(), torch.zeros(groups, 36, 36).double()
        for x in inputs.split(1):
            features = model[:3](x).detach()
            columns = F.unfold(features, 3).reshape(groups, 36, -1)
            inner += columns @ columns.mT / columns.shape[2] / len(inputs)
            middle = model[3](features).detach().requires_grad_()
            said = model[4:](middle.clone())[0]
            jacobian = torch.stack([torch.autograd.grad(one, middle, retain_graph=True)[0][0] for one in said])
            p = said.softmax(0)
            curvature = torch.diag(p) - torch.outer(p, p) if logits else 2 * torch.eye(5) / said.square().sum()
            by_group = jacobian.detach().reshape(5, groups, 3, -1)
            outer += torch.einsum("cgop,ck,kgep->goe", by_group, curvature.detach().double(), by_group) / len(inputs)
        rows = change.reshape(groups, 3, 36)
        exact = float(torch.einsum("goe,gei,gij,goj->", outer, rows, inner, rows)) / 2
        assert factors.loss(change) == pytest.approx(exact, rel=0.05)
        torch.testing.assert_close(factors.gradients, outer, rtol=0.15, atol=0.15 * float(outer.abs().max()))

    @pytest.mark.parametrize("name", ["0", "3", "5", "7"])
    def test_foresees_what_a_small_change_does(self, name):
        model, inputs = classifier(), drawn(200, 3, 9, 9)
        factors = fisher_factors(model, inputs, name, draws=8)[name]
        foreseen, found = [], []
        for seed in range(8):
            change = 1e-3 * drawn(*model.get_submodule(name).weight.shape, seed=seed)
            foreseen.append(factors.loss(change))
            found.append(kl(model, lambda moved, by=change: moved.get_submodule(name).weight.add_(by), inputs))
        # Positions and the two factors are taken for independent, which for random changes is nearly right.
        assert sum(foreseen) == pytest.approx(sum(found), rel=0.3)

    def test_counts_the_bias_with_the_weight(self):
        """Of a last layer with one position, the change of both is that of the logits, D·a + b."""
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 5)))
        sample = drawn(1, 4)
        factors = fisher_factors(model, sample.expand(400, 4), draws=50)["0"]
        p = model(sample)[0].softmax(0).detach()
        for weight, bias in ((drawn(5, 4, seed=1), drawn(5, seed=2)), (torch.zeros(5, 4), drawn(5, seed=3))):
            moved = weight.double() @ sample[0] + bias
            exact = float(moved @ (torch.diag(p) - torch.outer(p, p)) @ moved) / 2
            assert factors.loss(weight, bias) == pytest.approx(exact, rel=0.04)

    @pytest.mark.parametrize("kind", ["Conv1d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"])
    def test_of_every_dimension_is_that_of_the_same_matrix(self, kind):
        """By moments of the patches, for a loss that is linear: G is one matrix, and the form is written out."""
        layer = fresh(a_spec(kind))
        axes, groups = len(layer.kernel_size), layer.groups
        inputs = an_input(layer)
        factors = td.FisherFactors(td.ConvSpec.of(layer))
        features = layer(inputs).detach()
        gradients = drawn(*features.shape, seed=5)
        factors.update_inputs(inputs)
        factors.update_gradients(gradients)
        factors.rows = len(inputs)
        change = drawn(*layer.weight.shape, seed=6)
        # d⟨gradients, layer(inputs)⟩ / d weight is Σ a gᵀ over the positions; the form sums (aᵀ·dᵀ·g)² as if apart.
        probe = copy.deepcopy(layer)
        with torch.no_grad():
            probe.weight.copy_(change)
            probe.bias.zero_()
        if not layer.transposed:
            moved = probe(inputs).detach().flatten(2).reshape(len(inputs), groups, -1, features[0, 0].numel())
            first = torch.einsum("ngop,ngep->goe", moved, moved) / (len(inputs) * features[0, 0].numel())
            second = gradients.flatten(2).reshape(len(inputs), groups, -1, features[0, 0].numel())
            second = torch.einsum("ngop,ngep->goe", second, second) / len(inputs)
        else:
            # What goes back to every input pixel, as autograd sends it.
            x = inputs.clone().requires_grad_()
            (back,) = torch.autograd.grad(probe(x), x, gradients)
            pixels = inputs[0, 0].numel()
            first = back.flatten(2).reshape(len(inputs), groups, -1, pixels)
            first = torch.einsum("ngip,ngjp->gij", first, first) / len(inputs)
            second = inputs.flatten(2).reshape(len(inputs), groups, -1, pixels)
            second = torch.einsum("ngip,ngjp->gij", second, second) / (len(inputs) * pixels)
        assert axes == int(kind[-2])
        assert factors.loss(change) == pytest.approx(float((first * second).sum()) / 2, rel=1e-9)

    def test_without_whole_patches_channels_and_positions_are_taken_apart(self):
        """Exact for inputs that are a product of a random channel vector and one random sign a position."""
        conv = seeded(lambda: nn.Conv2d(4, 3, 3))
        signs = torch.randint(0, 2, (4000, 1, 3, 3), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        inputs = drawn(4000, 4, 1, 1) * signs
        whole, apart = (td.FisherFactors(td.ConvSpec.of(conv), joint=joint) for joint in (True, False))
        for factors in (whole, apart):
            factors.update_inputs(inputs)
            factors.update_gradients(drawn(4000, 3, 1, 1, seed=1))
            factors.rows = 4000
        change = drawn(3, 4, 3, 3, seed=2)
        assert apart.loss(change) == pytest.approx(whole.loss(change), rel=0.06)

    def test_memory_and_result_do_not_depend_on_the_batches(self):
        model, inputs = classifier(), drawn(150, 3, 9, 9)
        change = drawn(6, 4, 3, 3, seed=2)
        found = [
            fisher_factors(model, data, "3", draws=30)["3"].loss(change)
            for data in (inputs, list(inputs.split(7)), [{"input": inputs}], ((part, 0) for part in inputs.split(50)))
        ]
        assert found == pytest.approx([found[0]] * 4, rel=0.1)

    def test_progress_knows_how_many_batches_there_are(self):
        calls = []
        fisher_factors(classifier(), list(drawn(6, 3, 9, 9).split(3)), progress=lambda *call: calls.append(call))
        assert calls == [(1, 2, "output factors"), (2, 2, "output factors")]

    def test_leaves_the_model_as_it_was(self):
        model = classifier().train()
        model[0].weight.requires_grad_(False)
        before = copy.deepcopy(model.state_dict())
        wanting = [parameter.requires_grad for parameter in model.parameters()]
        state = torch.get_rng_state()
        first, second = (fisher_factors(model, drawn(6, 3, 9, 9))["7"].gradients for _ in range(2))
        assert torch.equal(first, second)
        assert torch.equal(state, torch.get_rng_state())
        assert model.training
        assert model[1].training
        assert [parameter.requires_grad for parameter in model.parameters()] == wanting
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize("autocast", [False, True])
    def test_half_precision_gives_about_the_same(self, autocast):
        model, inputs = classifier().float(), drawn(64, 3, 9, 9).float()
        change = drawn(6, 4, 3, 3, seed=2)
        exact = fisher_factors(model, inputs, "3", draws=16)["3"].loss(change)
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                found = fisher_factors(model, inputs, "3", draws=16)["3"].loss(change)
        else:
            found = fisher_factors(model.bfloat16(), inputs.bfloat16(), "3", draws=16)["3"].loss(change)
        assert found == pytest.approx(exact, rel=0.2)


class TestOutputDivergence:
    def test_is_that_of_the_model_with_one_layer_replaced(self):
        model, inputs = classifier(), drawn(40, 3, 9, 9)
        small = td.decompose(model, ["0", "3"], "tucker", 0.4)
        errors = td.approximation_errors(model, small, OUTPUTS, inputs)
        assert [list(found) for found in errors.values()] == [OUTPUTS] * 2
        for name, found in errors.items():
            alone = copy.deepcopy(model)
            alone.register_module(name, small.get_submodule(name))
            with torch.no_grad():
                before, after = (one(inputs).log_softmax(1) for one in (model, alone))
            expected = (before.exp() * (before - after)).sum(1).mean()
            assert found["output_divergence"] == pytest.approx(float(expected), rel=1e-9)
            values = td.approximation_errors(model, small, "output_divergence", inputs, logits=False)
            with torch.no_grad():
                before, after = model(inputs), alone(inputs)
            expected = ((before - after).square().sum(1) / before.square().sum(1)).mean()
            assert values[name]["output_divergence"] == pytest.approx(float(expected), rel=1e-9)

    def test_batches_of_any_size_give_the_same(self):
        model, inputs = classifier(), drawn(40, 3, 9, 9)
        small = td.decompose(model, ["0", "3"], "tucker", 0.4)
        first, *others = (
            td.approximation_errors(model, small, "output_divergence", data)
            for data in (inputs, list(inputs.split(7)), ((part, 0) for part in inputs.split(11)))
        )
        for other in others:
            assert {name: found["output_divergence"] for name, found in other.items()} == pytest.approx(
                {name: found["output_divergence"] for name, found in first.items()}
            )

    def test_several_metrics_need_data_that_can_be_read_again(self):
        model = classifier()
        small = td.decompose(model, "3", "tucker", 0.4)
        with pytest.raises(td.CompressionError, match="a generator is spent after one pass"):
            td.approximation_errors(model, small, OUTPUTS, (part for part in drawn(4, 3, 9, 9).split(2)))

    def test_a_users_metric(self):
        model, inputs = classifier(), drawn(40, 3, 9, 9)
        small = td.decompose(model, "3", "tucker", 0.2)
        try:

            @td.register_metric("flips", on="outputs")
            def flips(original: Output, approximation: Output):
                return (original.values.argmax(1) != approximation.values.argmax(1)).float()

            @td.register_metric("weighted", on="outputs", foreseen=True)
            def weighted(original, approximation, factors):
                return float(factors.gradients.sum())

            assert get_metrics(["flips"])[0].needs_data
            assert "flips" not in td.approximation_errors(model, small, data=inputs)["3"]
            found = td.approximation_errors(model, small, ["weighted", "flips"], inputs)["3"]
            with torch.no_grad():
                changed = (model(inputs).argmax(1) != small(inputs).argmax(1)).double().mean()
            assert found["flips"] == pytest.approx(float(changed))
            assert found["weighted"] == float(fisher_factors(model, inputs, "3")["3"].gradients.sum())
            with pytest.raises(td.CompressionError, match="only what is on outputs can be foreseen"):
                td.register_metric("no", on="weights", foreseen=True)
        finally:
            METRICS.pop("flips", None)
            METRICS.pop("weighted", None)


class TestWhatOutputsAre:
    @pytest.mark.parametrize(
        ("shape", "logits", "rows", "size", "are_logits"),
        [
            ((4, 10), None, 4, 10, True),
            ((4, 10), False, 4, 10, False),
            ((4, 1), None, 4, 1, False),
            ((4,), None, 4, 1, False),
            ((4, 6, 10), -1, 24, 10, True),
            ((4, 6, 10), True, 24, 10, True),
            ((4, 6, 10), 1, 40, 6, True),
            ((4, 6, 2, 3), 1, 24, 6, True),
            ((4, 6, 2, 3), False, 4, 36, False),
        ],
    )
    def test_rows(self, shape, logits, rows, size, are_logits):
        found = read_output(drawn(*shape), logits)
        assert (tuple(found.values.shape), found.are_logits, len(found)) == ((rows, size), are_logits, rows)

    def test_what_is_called_logits(self):
        assert read_output({"loss": drawn(()), "logits": drawn(2, 5, 7)}).values.shape == (10, 7)

    @pytest.mark.parametrize(
        ("output", "logits", "message"),
        [
            (torch.zeros(4, 6, 10), None, r"\(4, 6, 10\), which may be logits or not: pass logits=False, or"),
            (torch.zeros(4, 1), True, "has one class there.*pass logits=False"),
            (torch.zeros(4, 5), 2, r"logits=2: the model's output has the shape \(4, 5\) and no such axis"),
            (torch.zeros(4), True, "no such axis of classes"),
            (torch.zeros(4, 5, dtype=torch.long), None, "of torch.int64; metrics on outputs need floating point"),
        ],
    )
    def test_what_cannot_be_told_is_refused(self, output, logits, message):
        with pytest.raises(td.CompressionError, match=message):
            read_output(output, logits)


class TestRefusals:
    def test_an_embedding_that_is_named(self):
        model = seeded(lambda: nn.Sequential(nn.Embedding(30, 16), nn.Flatten(), nn.Linear(48, 5)))
        tokens = torch.randint(30, (8, 3), generator=torch.Generator().manual_seed(0))
        assert list(fisher_factors(model, tokens)) == ["2"]
        with pytest.raises(td.CompressionError, match="layer '0': the inputs of a layer of kind Embedding are numbers"):
            fisher_factors(model, tokens, "0")
        small = td.decompose(model, "0", "svd", rank=3)
        assert td.approximation_errors(model, small, "output_divergence", tokens)["0"]["output_divergence"] > 0

    def test_a_forward_without_gradients(self):
        class Detached(nn.Sequential):
            def forward(self, x):
                return super().forward(x).detach()

        model = Detached(nn.Linear(4, 5))
        with pytest.raises(td.CompressionError, match="has no gradient; does its forward detach it"):
            fisher_factors(model, torch.ones(2, 4))

    def test_a_forward_that_overwrites_what_the_way_back_needs(self):
        class Overwriting(nn.Sequential):
            def forward(self, x):
                return super().forward(x).sigmoid().mul_(2)

        model = Overwriting(nn.Linear(4, 5))
        with pytest.raises(td.CompressionError, match=r"its forward overwrites .*; switch that off") as caught:
            fisher_factors(model, torch.ones(2, 4))
        assert "modified by an inplace operation" in str(caught.value.__cause__)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": []}, "the data is empty"),
            ({"data": torch.full((2, 4), torch.inf)}, "NaN or infinite"),
            ({"draws": 0}, "draws must be a whole number from 1"),
            ({"layer": "nowhere"}, "nowhere"),
        ],
    )
    def test_bad_arguments(self, change, message):
        model = seeded(lambda: nn.Sequential(nn.Linear(4, 5))).float()
        with pytest.raises(td.CompressionError, match=message):
            fisher_factors(model, **{"data": torch.ones(2, 4), **change})

    def test_a_layer_that_the_output_does_not_depend_on(self):
        class Aside(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.Linear(4, 5), nn.Linear(4, 5)

            def forward(self, x):
                self.unused(x)
                return self.used(x)

        assert list(fisher_factors(Aside(), torch.ones(2, 4))) == ["used"]
        with pytest.raises(td.CompressionError, match="reached 'unused', or its output does not depend"):
            fisher_factors(Aside(), torch.ones(2, 4), ["used", "unused"])

    def test_gradients_of_too_many_outputs(self):
        with pytest.raises(td.CompressionError, match=r"1 × 50000² numbers, 10 GB; leave this layer out"):
            td.FisherFactors(td.ConvSpec(4, 50000, has_bias=False))
