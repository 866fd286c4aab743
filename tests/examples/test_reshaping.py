"""The study of reshaped linear layers."""

import pandas as pd
import pytest
import torch

from examples.reshaping.__main__ import main
from examples.reshaping.trials import HIDDEN, perceptron
from examples.reshaping.ways import WAYS
from examples.reshaping.whitened import main as compare_shapes


@pytest.mark.parametrize("way", WAYS)
def test_every_way_keeps_to_the_budget_or_says_that_it_cannot(way):
    matrix = torch.randn(24, 36, generator=torch.Generator().manual_seed(0))
    found = WAYS[way](matrix, [10, 300, 600])
    assert found[0] is None
    for one, budget in zip(found[1:], (300, 600), strict=True):
        assert one is not None
        assert 0 < one.parameters <= budget
        assert one.matrix.shape == matrix.shape
        assert 0 < float((matrix - one.matrix).norm() / matrix.norm()) < 1


@pytest.mark.full
@pytest.mark.parametrize("runs", [1, 2])
def test_the_command_trains_compares_and_draws(runs, tmp_path, capsys):
    arguments = ["digits", "--runs", str(runs), "--ratios", "0.5", "0.9", "--output", str(tmp_path)]
    main(arguments)
    frame = pd.read_csv(tmp_path / "results.csv")
    assert set(frame.layer) == {"fc1", "fc2", "fc3", HIDDEN}
    assert set(frame.method) == set(WAYS)
    hidden = frame[frame.layer.isin(["fc1", "fc2"])].set_index(["run", "layer", "ratio", "method"]).relative_weights
    for key in {key[:3] for key in hidden.index}:
        for method in ("kronecker", "blr"):  # of the train's shapes it is the bound that is compared
            balanced, best = ((*key, f"{method}, {shape}") for shape in ("balanced", "best"))
            assert hidden[best] <= hidden.get(balanced, 1.0) + 1e-6
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.count("| kronecker, best |") == 5
    assert "| absolute features |" in table
    assert (tmp_path / "reshaping.png").stat().st_size > 1000
    weights = (tmp_path / "weights-0.safetensors").stat().st_mtime_ns
    main(arguments)
    assert (tmp_path / "weights-0.safetensors").stat().st_mtime_ns == weights
    pd.testing.assert_frame_equal(frame, pd.read_csv(tmp_path / "results.csv"))
    assert f"network {runs - 1}: test accuracy 0." in capsys.readouterr().out


@pytest.mark.full
def test_shapes_by_the_features_are_compared_with_those_by_the_weight(tmp_path, capsys):
    compare_shapes(["digits", "--ratios", "0.75", "0.98", "--output", str(tmp_path)])
    *rows, last = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {(row[0], row[1]) for row in rows} == {
        (layer, method) for layer in ("fc1", "fc2", "fc3") for method in ("kronecker", "ttm", "blr")
    }
    assert all(0 < float(row[3]) < 1 for row in rows)
    changes = [float(row[4]) / float(row[3]) for row in rows]
    assert last[0].startswith("by the features over by the weight: mean ")
    assert float(last[0].split("mean ")[1].split(",")[0]) == pytest.approx(
        float(torch.tensor(changes).log().mean().exp()), abs=2e-3
    )


def test_a_perceptron_has_no_activation_after_its_last_layer():
    model = perceptron((4, 3, 2))
    assert [type(layer).__name__ for layer in model] == ["Flatten", "Linear", "ReLU", "Linear"]
