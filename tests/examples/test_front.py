"""What the first page shows: its network and its picture."""

import csv
from pathlib import Path

import pytest

from examples.budget.front import PICTURE, TABLE, main
from examples.trained import trained
from tdcompress import CompressionError

ROOT = Path(__file__).parents[2]


def test_only_networks_that_the_repository_holds_are_trained():
    with pytest.raises(CompressionError, match="no weights for 'resnet18'; it has for digits-resnet, garipov-fmnist"):
        trained("resnet18")


def test_the_picture_is_drawn_from_the_committed_table(tmp_path):
    main([str(ROOT / TABLE), str(tmp_path / "front.png")])
    assert (tmp_path / "front.png").stat().st_size > 10_000
    assert (ROOT / PICTURE).exists()


def test_lines_that_were_not_measured_are_left_out_and_the_dense_network_is_needed(tmp_path):
    with open(ROOT / TABLE, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["procedure"] == "uniform CP"]
    with open(tmp_path / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "table.md").write_text("Test accuracy.\n")
    arguments = [str(tmp_path / "results.csv"), str(tmp_path / "front.png")]
    with pytest.raises(CompressionError, match="does not say how accurate the dense network is"):
        main(arguments)
    (tmp_path / "table.md").write_text("Test accuracy; dense 0.9356. More.\n")
    main(arguments)
    assert (tmp_path / "front.png").exists()
