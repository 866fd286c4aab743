from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from matplotlib.container import BarContainer, ErrorbarContainer

import tdcompress as td
from tdcompress.errors import CompressionError
from tdcompress.study import plots
from tdcompress.study.drawing import COLOURS
from tdcompress.study.groupings import errors_of, performances_of, taus
from tests.drawing import more
from tests.examples.test_tables import synthetic

NAMES = ["figure1_by_level", "figure2_all", "figure3_layers_and_methods", "figure4_scatter", "figure5_regret"]
FAINT = plots.Reference("elsewhere", lambda row: 0.5 if row.error == "relative_weights" else None)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    monkeypatch.setattr(plots, "DPI", 60)


@pytest.mark.parametrize(
    ("fine_tuned", "calibrated", "reference"),
    [(True, True, None), *more((False, False, FAINT), (True, False, FAINT))],
)
def test_every_figure_is_drawn(tmp_path, fine_tuned, calibrated, reference):
    frame = synthetic(fine_tuned=fine_tuned, calibrated=calibrated)
    shown = performances_of(frame, "test_error")
    files = plots.draw_all(tmp_path / "new", frame, shown, reference=reference, baseline=0.05)
    assert [file.stem for file in files] == NAMES
    for file in files:
        picture = matplotlib.image.imread(file)
        assert min(picture.shape[:2]) > 150
        colours = (255 * picture[..., :3]).astype(int) @ (1, 256, 256**2)
        assert len(np.unique(colours)) > 50


def test_only_what_there_is_to_draw(tmp_path):
    frame = synthetic(layers=("a",), methods=("cp",), fine_tuned=False)
    files = plots.draw_all(tmp_path, frame, performances_of(frame, "test_error"))
    assert [file.stem for file in files] == ["figure2_all", "figure4_scatter"]


def test_a_test_error_of_zero_is_no_problem(tmp_path):
    frame = synthetic(fine_tuned=False)
    frame.loc[0, "test_error"] = 0.0
    assert len(plots.draw_all(tmp_path, frame, performances_of(frame, "test_error"), baseline=0.0)) == 5


def test_a_table_of_somebody_else_s(tmp_path):
    frame = synthetic(fine_tuned=False)[["layer", "method", "ratio", "run", "scaled_weights", "test_error"]]
    frame = frame.rename(columns={"scaled_weights": "my error", "test_error": "loss"})
    assert len(plots.draw_all(tmp_path, frame, {"loss": "loss"}, errors=["my error"], label="loss")) == 5
    with pytest.raises(CompressionError, match="no column is named like a metric; name the errors among layer"):
        errors_of(frame)


def test_a_reference_is_explained_only_where_it_is_drawn():
    frame = synthetic(fine_tuned=False)
    shown = performances_of(frame, "test_error")
    rows = taus(frame, shown)
    every = [row for row in rows if row.grouping.name == "all"]
    levels = [row for row in rows if len(row.grouping.ratios) == 1]
    unknown = plots.Reference("elsewhere", lambda row: None)
    for reference, count in ((FAINT, 1), (unknown, 0)):
        for figure in (plots.bars([every], shown, reference), plots.by_ratio(levels, shown, reference)):
            said = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
            assert said.count("elsewhere") == count


@pytest.mark.parametrize("runs", [1, 2])
def test_only_several_runs_have_a_deviation(runs):
    frame = synthetic(fine_tuned=False, runs=runs)
    shown = performances_of(frame, "test_error")
    rows = taus(frame, shown)
    every = [row for row in rows if row.grouping.name == "all"]
    levels = [row for row in rows if len(row.grouping.ratios) == 1]
    (bars,), (lines,) = plots.bars([every], shown).axes, plots.by_ratio(levels, shown).axes
    drawn = [bar.errorbar is not None for bar in bars.containers if isinstance(bar, BarContainer)]
    assert drawn == [runs > 1] * len(every)
    drawn = [line.has_yerr for line in lines.containers if isinstance(line, ErrorbarContainer)]
    assert drawn == [runs > 1] * len(every)


@pytest.mark.parametrize("layers", ["a", "ab"])
def test_only_several_layers_have_an_interval(layers):
    frame = synthetic(fine_tuned=False, layers=layers)
    (axis,) = plots.regrets(frame, performances_of(frame, "test_error")).axes
    drawn = [bar.errorbar is not None for bar in axis.containers if isinstance(bar, BarContainer)]
    assert drawn == [len(layers) > 1] * len(errors_of(frame))


@pytest.mark.parametrize("nearest", [0.75, 0.91])
def test_labels_of_levels_do_not_overlap(nearest):
    frame = synthetic(fine_tuned=False)
    levels = sorted(frame["ratio"].unique())
    frame["ratio"] = frame["ratio"].replace({levels[-2]: 0.9, levels[-1]: nearest})
    shown = performances_of(frame, "test_error")
    figure = plots.by_ratio([row for row in taus(frame, shown) if len(row.grouping.ratios) == 1], shown)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    boxes = [text.get_window_extent() for text in axis.get_xticklabels()]
    assert [text.get_text() for text in axis.get_xticklabels()] == [f"{100 * x:g}" for x in sorted({*frame["ratio"]})]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def widths(axis):
    return [patch.get_width() for patch in axis.patches]


def test_bars_have_the_width_of_tau():
    frame = synthetic()
    shown = performances_of(frame, "test_error")
    rows = [row for row in taus(frame, shown) if row.grouping.name == "all"]
    figure = plots.bars([rows], shown)
    drawn = [widths(axis) for axis in figure.axes]
    expected = [[row.correlation.mean for row in rows if row.performance == column] for column in shown.values()]
    assert drawn == expected


def test_regrets_are_in_percentage_points_and_name_the_lot():
    frame = synthetic(fine_tuned=False)
    figure = plots.regrets(frame, {"": "test_error"}, ["relative_weights", "scaled_features"])
    (axis,) = figure.axes
    expected = [100 * td.regret(frame, error, "test_error").mean for error in ("relative_weights", "scaled_features")]
    assert widths(axis) == pytest.approx(expected)
    chance = td.regret(frame, "relative_weights", "test_error").chance
    assert f"(by lot: {100 * chance:.2f})" in axis.get_title()


def test_colours_can_be_told_apart_and_so_can_the_hatching():
    assert len(set(COLOURS)) == len(COLOURS) >= len(errors_of(synthetic()))
    figure = plots.regrets(synthetic(), {"": "test_error"})
    assert [bool(patch.get_hatch()) for patch in figure.axes[0].patches] == [False] * 3 + [True] * 3
