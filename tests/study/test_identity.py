import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import tdcompress as td
from tdcompress.decompositions import Options
from tdcompress.errors import CompressionError
from tdcompress.metrics import METRICS, default_metrics
from tdcompress.study.identity import data_digest, model_digest, options_fields
from tests.study.functions import METHODS, evaluate, finetune, images, network, study


def keys(**changes):
    return [trial.key for trial in study(**changes).trials()]


def one_bit_apart():
    model: Any = network()
    model[0].weight.detach().view(torch.int32)[0, 0, 0, 0] ^= 1
    return model


def one_buffer_apart():
    model: Any = network()
    model[1].running_var[0] += 1
    return model


CHANGES = {
    "one bit of one weight": {"model": one_bit_apart()},
    "a buffer": {"model": one_buffer_apart()},
    "a solver's option": {"methods": dict.fromkeys(METHODS) | {"tucker": td.TuckerOptions(max_iter=3)}},
    "the metrics": {"metrics": ["relative_weights"]},
    "the data of feature metrics": {"data": images(4, seed=3)},
    "the rule for ranks": {"ranks": "tensorly-torch"},
    "fine-tuning": {"finetune": finetune},
    "what the user calls another version": {"version": "2"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_result_changes_the_key(what):
    before, after = keys(), keys(**CHANGES[what])
    untouched = sum(one == other for one, other in zip(before, after, strict=True))
    assert untouched == (16 if what == "a solver's option" else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"evaluate": lambda model: evaluate(model)},
        {"layers": lambda name, module: isinstance(module, nn.Conv2d)},
        {"metrics": list(reversed(default_metrics(with_data=True)))},
        {"model": network().to(memory_format=torch.channels_last)},  # type: ignore[call-overload]
        {"model": network().train()},
        {"methods": dict.fromkeys(METHODS)},
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_key(change):
    assert keys(**change) == keys()


def test_a_larger_grid_keeps_its_old_trials():
    grown = keys(runs=3, ratios=(0.3, 0.45, 0.6))
    assert set(keys()) < set(grown)


def test_data_counts_only_for_metrics_on_features():
    weights = ["relative_weights"]
    assert keys(metrics=weights, data=images(2)) == keys(metrics=weights, data=images(3))


def test_a_metric_s_version_counts(monkeypatch):
    before = keys()
    monkeypatch.setitem(METRICS, "relative_weights", dataclasses.replace(METRICS["relative_weights"], version=2))
    assert not set(before) & set(keys())


def test_runs_that_cannot_differ_have_one_key():
    random = {"cp": td.CPOptions(starts=("random",)), "tucker": None}
    by_method: dict[tuple[str, str, float], set[str]] = {}
    for trial in study(methods=random, runs=3).trials():
        by_method.setdefault((trial.method, trial.layer, trial.ratio), set()).add(trial.key)
    assert {len(found) for (method, *_), found in by_method.items() if method == "cp"} == {3}
    assert {len(found) for (method, *_), found in by_method.items() if method == "tucker"} == {1}


def test_fine_tuned_runs_differ_but_share_a_deterministic_decomposition():
    trials = [trial for trial in study(finetune=finetune).trials() if trial.method == "tt" and trial.ratio == 0.3]
    assert len({trial.key for trial in trials}) == 4
    assert len({trial.decomposition for trial in trials}) == 2  # one a layer


@pytest.mark.parametrize(
    ("method", "solver", "fixed"),
    [
        ("cp", None, True),
        ("cp", td.CPOptions(starts=("random",)), False),
        ("cp", td.CPOptions(starts=("orthogonal", "random")), False),
        ("cp", "tensorly", False),
        ("tucker", "tensorly", True),
        ("tt", None, True),
    ],
)
def test_methods_know_whether_they_draw(method, solver, fixed):
    kind = td.methods.get_method(method)
    assert kind.deterministic(kind.options.of(solver)) == fixed
    conv = network()[0]
    if fixed:
        first, second = (kind.from_conv(conv, rank=2, solver=solver, seed=seed).weight for seed in (0, 1))
        assert torch.equal(first, second)


def test_a_method_of_the_user_s_is_taken_to_draw():
    assert not td.FactorizedConv.deterministic(Options())


def test_digests_do_not_depend_on_memory():
    model = network()
    copied: Any = network()
    copied.load_state_dict(model.state_dict())
    assert model_digest(model) == model_digest(copied.to(memory_format=torch.channels_last))
    assert model_digest(model) != model_digest(nn.Sequential(*model, nn.ReLU()))
    assert model_digest(model) != model_digest(network().double())


def test_data_of_every_kind():
    batch: Any = images()
    assert data_digest(batch) == data_digest(batch.clone())
    assert data_digest([batch, 1]) == data_digest((batch.clone(), 1))
    assert data_digest({"a": batch, "b": 1}) == data_digest({"b": 1, "a": batch})
    assert len({data_digest(one) for one in (batch, [batch], {"a": batch}, batch[:-1], -batch)}) == 5
    assert data_digest(DataLoader(batch)) is None


class TestLoaders:
    def test_what_gives_the_same_samples_is_the_same_data(self):
        batch, labels = images(6), torch.arange(6)
        dataset = TensorDataset(batch, labels)
        same = [
            DataLoader(dataset),
            DataLoader(TensorDataset(batch.clone(), labels), batch_size=4),
            DataLoader(dataset, batch_size=4, shuffle=True),
            DataLoader(dataset, batch_size=3, shuffle=True, drop_last=True),  # which drops none
            DataLoader(dataset, batch_size=None),
            DataLoader(dataset, num_workers=1, pin_memory=False),
        ]
        assert len({data_digest(loader, loaders=True) for loader in same}) == 1
        assert data_digest(same[0], loaders=True) is not None

    def test_what_gives_other_samples_is_other_data(self):
        batch, labels = images(6), torch.arange(6)
        dataset = TensorDataset(batch, labels)
        sequences: list[Any] = [
            batch,
            list(zip(batch, labels.tolist(), strict=True)),
            [{"x": one} for one in batch],
        ]
        others = [
            DataLoader(dataset),
            DataLoader(dataset, batch_size=4, drop_last=True),
            DataLoader(TensorDataset(batch)),
            DataLoader(TensorDataset(images(6, seed=5), labels)),
            DataLoader(Subset(dataset, [0, 2])),
            DataLoader(Subset(dataset, [0, 3])),
            DataLoader(ConcatDataset([dataset, dataset])),
            *map(DataLoader, sequences),
        ]
        found = [data_digest(loader, loaders=True) for loader in others]
        assert None not in found
        assert len(set(found)) == len(others)

    def test_what_cannot_be_known_has_no_hash(self):
        class Changed(TensorDataset):
            def __getitem__(self, index):
                return 2 * super().__getitem__(index)[0]

        class Loader(DataLoader[Any]):
            pass

        dataset = TensorDataset(images(6))
        random = {"replacement": True}, {"num_samples": 3}
        unknown: Any = [object()]
        for loader in [
            DataLoader(Changed(images(6))),
            DataLoader(Subset(Changed(images(6)), [0])),
            DataLoader(ConcatDataset([dataset, Changed(images(6))])),
            DataLoader(dataset, collate_fn=lambda samples: samples[0]),
            DataLoader(dataset, batch_size=4, shuffle=True, drop_last=True),
            DataLoader(dataset, sampler=SubsetRandomSampler([0, 1])),
            DataLoader(dataset, batch_sampler=[[0, 1]]),
            *(DataLoader(dataset, sampler=RandomSampler(dataset, **options)) for options in random),
            Loader(dataset),
            DataLoader(unknown),
        ]:
            assert data_digest(loader, loaders=True) is None

    def test_studies_with_different_data_share_no_keys(self):
        one, same, other = (
            keys(data=DataLoader(TensorDataset(images(4, seed=seed)), batch_size=size))
            for seed, size in ((2, 2), (2, 4), (3, 2))
        )
        assert one == same
        assert not set(one) & set(other)

    def test_a_version_says_what_data_it_is_as_it_always_did(self):
        one, other = (keys(data=DataLoader(TensorDataset(images(4, seed=s))), version="1") for s in (2, 3))
        assert one == other

    def test_a_loader_gives_the_errors_of_its_tensor(self, store):
        data = images(6, seed=2)
        loader = DataLoader(TensorDataset(data, torch.arange(6)), batch_size=4)
        names = ["layer", "method", "ratio", "relative_features"]
        found = study(data=loader, runs=1).run(store, progress=False)[names]
        expected = study(data=data, runs=1).run(store, progress=False)[names]
        assert found.relative_features.tolist() == pytest.approx(expected.relative_features.tolist())

    def test_unknown_data_without_a_version_is_warned_of(self, store):
        class Batches:
            def __iter__(self):
                return iter([images(4, seed=2)])

        few = {"data": Batches(), "methods": ["tucker"], "ratios": (0.5,), "runs": 1}
        with pytest.warns(UserWarning, match="cannot be hashed.*Pass version= and change it with the data"):
            study(**few).run(store, progress=False)
        study(**few, version="1").run(store, progress=False)  # warnings are errors here
        study(**few, metrics=["relative_weights"]).run(store, progress=False)


def tiny():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
    return model


def test_stores_from_before_are_found():
    """Keys as they have been since the first store; where they change, users measure everything again."""
    data = torch.ones(2, 1, 3, 3)
    loaded = {"data": DataLoader(TensorDataset(data)), "version": "1"}
    known: list[tuple[dict[str, Any], str]] = [
        ({"data": data}, "8d7aba38e7cd559c5ce1d393eda2d356"),
        (loaded, "33c72edf688af59ee0280f6f31db2b13"),
    ]
    for changes, key in known:
        found = study(model=tiny(), layers="0", methods=["tucker"], ratios=(0.5,), runs=1, **changes)
        assert [trial.key for trial in found.trials()] == [key]


def test_options_that_cannot_be_told_apart_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Mine(Options):
        what: object = None

    with pytest.raises(CompressionError, match="cannot be told from others"):
        options_fields(Mine(object()))


def test_options_are_told_apart_by_what_they_mean():
    assert options_fields(td.CPOptions()) is None
    assert options_fields(td.TTOptions(backend="tensorly", orders="given")) == "tensorly"
    assert options_fields(td.TTOptions(backend="tensorly"))["backend"] == "tensorly"
    assert "backend" not in options_fields(td.TTOptions(max_iter=3))
