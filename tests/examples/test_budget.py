"""The comparison of ways to spend a budget."""

import csv
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import tdcompress as td
from examples.budget import __main__ as command_line
from examples.budget.__main__ import main
from examples.budget.blocks import by_blocks
from examples.budget.procedures import PROCEDURES, Task
from examples.budget.rates import compared as by_rates
from examples.budget.sensitivity import compared, weighted
from examples.budget.sensitivity import main as sensitivity
from examples.budget.vbmf import vbmf_rank
from examples.paper.data import Split
from examples.paper.models import DigitsNet, seeded
from examples.paper.train import save_checkpoint
from tdcompress import FactorizedConv
from tdcompress.report.table import short_count
from tests.drawing import more
from tests.examples.test_tables import synthetic


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3),
        nn.Flatten(),
    ).eval()


SHOWN = ("uniform CP", "equal relative error", "VBMF ranks", "plan + calibration + data-aware + distilled")


@pytest.mark.parametrize(
    ("procedure", "ratio"),
    [
        *product(SHOWN, [0.8]),
        *more(*((one, 0.8) for one in PROCEDURES if one not in SHOWN), *product(PROCEDURES, [0.5])),
    ],
)
def test_every_procedure_keeps_to_the_budget(procedure, ratio):
    model = network()
    task = Task(model, ("3", "5"), torch.randn(32, 3, 9, 9), batch=16, distillation=td.DistillationOptions(passes=2))
    small = PROCEDURES[procedure](task, ratio)
    layers: list[Any] = [small.get_submodule(name) for name in task.layers]
    kept = sum(
        sum(s.weight.numel() for s in layer) if isinstance(layer, FactorizedConv) else layer.weight.numel()
        for layer in layers
    )
    dense = sum(model.get_submodule(name).weight.numel() for name in task.layers)
    # tensorly-torch rounds its ranks, up as well as down.
    assert kept <= (1 - ratio) * dense * (1.1 if "tensorly" in procedure else 1)


def test_blocks_come_nearer_to_the_features_of_the_original():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential()
        for name, layer in {
            "conv1": nn.Conv2d(3, 16, 3),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(16, 16, 3),
            "bn2": nn.BatchNorm2d(16),
        }.items():
            model.add_module(name, layer)
        task = Task(model.eval(), ("conv2",), torch.randn(64, 3, 7, 7), batch=16)
    small = td.decompose(model, "conv2", "tucker", 0.8)
    given = [parameter.clone() for parameter in small.parameters()]
    found = by_blocks(task, small, passes=5)
    with torch.no_grad():
        before, after = ((one(task.images) - model(task.images)).square().sum() for one in (small, found))
    assert after < before
    assert all(map(torch.equal, small.parameters(), given))


@pytest.mark.full
def test_rates_are_compared_beside_the_one_that_distillation_takes_itself():
    model = network()
    task = Task(model, ("3", "5"), torch.randn(40, 3, 9, 9), batch=20, distillation=td.DistillationOptions(passes=1))
    split = Split(torch.randn(20, 3, 9, 9), torch.zeros(20, dtype=torch.int64))
    head, line, row = by_rates(task, split, [0.8], [1e-2])
    assert head == "| removed | calibrated | 0.01 | by itself |"
    assert line.count("|") == head.count("|")
    ratio, *cells = row.strip("| ").split(" | ")
    assert ratio == "80 %"
    assert len(cells) == 3
    for cell in cells:
        apart, accuracy = map(float, cell.split(", "))
        assert apart >= 0
        assert 0 <= accuracy <= 1


@pytest.mark.parametrize("rank", [1, 3, 10])
@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (60, 60)])
def test_the_rank_under_noise_is_found(rank, shape):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(size, rank, generator=generator) for size in shape)
    assert vbmf_rank(first @ second.T + 0.05 * torch.randn(shape, generator=generator)) == rank


def test_noise_alone_has_rank_zero():
    assert vbmf_rank(torch.randn(50, 300, generator=torch.Generator().manual_seed(0))) == 0


@pytest.fixture
def folder(tmp_path):
    """What comes out does not depend on whether the network has learnt anything, so it need not be trained."""
    save_checkpoint(seeded(DigitsNet, seed=0), tmp_path / "weights.safetensors", {})
    return tmp_path


@pytest.mark.full
def test_rows_of_another_seed_are_computed_and_those_from_before_seeds_were_noted_are_of_seed_zero(folder):
    command = ["digits", "--output", str(folder), "--ratios", "0.9", "--no-finetune", "--procedures", "uniform CP"]
    main(command)
    table = folder / "results.csv"
    (names, values) = (line.split(",") for line in table.read_text().splitlines())
    place = names.index("seed")
    table.write_text("\n".join(",".join(line[:place] + line[place + 1 :]) for line in (names, values)) + "\n")
    main([*command, "--seed", "1"])
    main(command)
    header, *rows = (line.split(",") for line in table.read_text().splitlines())
    assert [row[header.index("seed")] for row in rows] == ["0", "1"]


def test_one_run_writes_table_and_picture_and_goes_on(folder, capsys):
    command = ["digits", "--output", str(folder), "--ratios", "0.9", "--no-finetune", "--procedures"]
    main([*command, "uniform CP"])
    first = (folder / "results.csv").read_text()
    main([*command, "uniform CP", "plan"])
    assert (folder / "results.csv").read_text().startswith(first)
    accuracies, costs = (folder / "table.md").read_text().split("\n\nParameters of the whole network")
    assert "| plan |" in accuracies
    (line,) = (line for line in costs.splitlines() if line.startswith("| plan |"))
    rows = [line.split(",") for line in (folder / "results.csv").read_text().splitlines()]
    parameters = dict(zip(rows[0], rows[2], strict=True))["parameters"]
    assert line.startswith(f"| plan | {short_count(int(parameters))}, ")
    assert (folder / "accuracy.png").stat().st_size > 0
    assert "dense: " in capsys.readouterr().out


@pytest.mark.full
def test_the_rate_that_is_best_for_the_validation_images_counts(folder, monkeypatch):
    tuning = command_line._FINE_TUNING
    monkeypatch.setitem(tuning, "digits", replace(tuning["digits"], epochs=3, samples=512))
    command = ["digits", "--output", str(folder), "--ratios", "0.5", "--procedures", "uniform CP", "--rates"]
    found: list[float] = []
    for rates in (["1e-2", "1e-9"], ["1e-9", "1e-2"]):  # the second of them changes next to nothing
        main([*command, *rates])
        *before, row = csv.DictReader((folder / "results.csv").read_text().splitlines())
        assert len(before) == len(found)
        assert row["rates"] == " ".join(f"{float(rate):g}" for rate in rates)
        assert float(row["fine_tuned"]) > float(row["accuracy"]) + 0.1
        found.append(float(row["fine_tuned"]))
    assert found[0] == found[1]


class TestSensitivity:
    def test_a_trial_is_weighted_by_its_layer(self):
        model = network()
        plan = td.plan(model, 0.5, methods=("tucker",), layers=["3", "5"], data=[torch.randn(32, 3, 9, 9)])
        table = pd.DataFrame([{"layer": "3", "relative_weights": 0.2}, {"layer": "5", "relative_weights": 0.2}])
        for entry in plan.layers:
            option = next(one for one in entry.options if 0.1 < one.error < 0.9)
            table["relative_weights"] = option.error
            found = weighted(table, plan)[table["layer"] == entry.layer]
            assert found.item() == pytest.approx(option.loss, rel=1e-6)

    def test_the_better_one_is_seen_to_be_better(self):
        frame = synthetic(fine_tuned=False, calibrated=True)
        frame["weighted"] = frame["test_error"] = frame["relative_weights"] + frame["scaled_weights"]
        header, _, *lines = compared(frame)
        assert header.count("|") == 8
        assert len(lines) == 2 * 2 * 2
        (line,) = (line for line in lines if line.startswith("| classification error before fine-tuning | all"))
        plain = td.correlate(frame[frame["ratio"] >= 0.5], "relative_weights", "test_error").mean
        assert line.startswith(f"| classification error before fine-tuning | all, 50–90 % | {plain:.3f} | 1.000 | +")

    def test_without_a_study_the_command_says_what_to_run(self, tmp_path):
        with pytest.raises(td.CompressionError, match=r"results\.csv is missing; run python -m examples\.paper digits"):
            sensitivity(["digits", "--results", str(tmp_path)])
