"""The paper's figures 1 to 4, and what a choice by an error costs, from any table of results.

Matplotlib figures, which `figure.savefig(path)` writes. Errors differ by colour, by marker and by hatching, so that
they can be told apart in grey and by the colour-blind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from matplotlib.figure import Figure

from tdcompress.deferred import DataFrame
from tdcompress.study.groupings import errors_of, taus
from tdcompress.study.tau_figures import Reference, bars, by_ratio
from tdcompress.study.trial_figures import regrets, scatter

__all__ = ["DPI", "Reference", "bars", "by_ratio", "draw_all", "regrets", "scatter"]

DPI = 180


def draw_all(
    folder: str | PathLike[str],
    table: DataFrame,
    performances: Mapping[str, str],
    *,
    errors: Sequence[str] | None = None,
    reference: Reference | None = None,
    baseline: float | None = None,
    label: str = "test error",
    scale: float = 100,
) -> list[Path]:
    """Draw every figure that a table allows.

    Args:
        folder: for the PNG files; made if it is missing.
        table: one row a trial, as `Study.run` gives it.
        performances: columns by the title of their panel, such as `{"before fine-tuning": "test_error"}`.
        errors: columns of approximation errors; those of registered metrics by default.
        reference: other results to stand beside.
        baseline: the performance of the uncompressed model.
        label: what the performance is called on an axis.
        scale: the performance is multiplied by it: 100 for percent.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    errors = list(errors or errors_of(table))
    rows = taus(table, performances, errors)
    named = {name: [row for row in rows if row.grouping.name == name] for name in ("all", "layers", "methods")}
    levels = [row for row in rows if row.grouping.name.endswith("%")]
    figures: dict[str, Figure | None] = {
        "figure1_by_level": by_ratio(levels, performances, reference, label) if levels else None,
        "figure2_all": bars([named["all"]], performances, reference, label) if named["all"] else None,
        "figure3_layers_and_methods": bars([named["layers"], named["methods"]], performances, reference, label)
        if named["layers"] and named["methods"]
        else None,
        "figure4_scatter": scatter(table, performances, _most_telling(errors), baseline, label, scale),
        "figure5_regret": regrets(table, performances, errors, label, scale) if named["methods"] else None,
    }
    files = []
    for name, figure in figures.items():
        if figure is not None:
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=DPI)
    return files


def _most_telling(errors: Sequence[str]) -> str:
    return "relative_weights" if "relative_weights" in errors else errors[0]
