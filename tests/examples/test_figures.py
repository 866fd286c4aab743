import matplotlib.image
import numpy as np
import pytest

from examples.paper import figures
from examples.paper.figures import draw_all
from examples.paper.reference import Published
from examples.paper.tables import taus
from tests.examples.test_tables import synthetic

NAMES = ["figure1_by_level", "figure2_all", "figure3_layers_and_methods", "figure4_scatter"]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 60)


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_every_figure_is_drawn(tmp_path, fine_tuned):
    frame, published = synthetic(fine_tuned=fine_tuned), Published("GaripovNet", "F-MNIST", same_network=fine_tuned)
    files = draw_all(tmp_path / "new", frame, taus(frame, published), published, baseline=0.05)
    assert [file.stem for file in files] == NAMES
    for file in files:
        picture = matplotlib.image.imread(file)
        assert min(picture.shape[:2]) > 150
        assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


def test_only_what_there_is_to_draw(tmp_path):
    frame, published = synthetic(layers=("a",), fine_tuned=False), Published("ResNet-18", "CIFAR-10")
    files = draw_all(tmp_path, frame, taus(frame, published), published, baseline=0.05)
    assert [file.stem for file in files] == ["figure1_by_level", "figure2_all", "figure4_scatter"]


def test_a_test_error_of_zero_is_no_problem(tmp_path):
    frame, published = synthetic(), Published("GaripovNet", "F-MNIST")
    frame.loc[0, "test_error"] = 0.0
    assert len(draw_all(tmp_path, frame, taus(frame, published), published, baseline=0.0)) == 4
