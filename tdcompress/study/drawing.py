"""How the figures of a study look: colours, markers, bars and axes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from tdcompress.metrics import METRICS

# Okabe & Ito's palette, which colour-blind readers can tell apart; features differ from weights by hatching as well.
COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#F0E442")
METHOD_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def spoken(error: str) -> str:
    """A column's name for a reader: "relative weights"."""
    return error.replace("_", " ")


def logarithmic(axis: Axes) -> None:
    """A logarithmic vertical axis with plain numbers on it."""
    axis.set_yscale("log", nonpositive="clip")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())


def horizontal_bars(
    axis: Axes, errors: Sequence[str], widths: Sequence[float], margins: Sequence[Sequence[float]]
) -> None:
    """A bar an error, hatched for those of features, with margins to the (left, right), or with none."""
    for place, (error, width) in enumerate(zip(errors, widths, strict=True)):
        margin = [[side[place]] for side in margins] or None
        hatch = "//" if is_on_features(error) else None
        axis.barh(place, width, xerr=margin, height=0.7, color=style_of(place)[0], capsize=3, edgecolor="white",
                  hatch=hatch, linewidth=0.5, error_kw={"elinewidth": 1.2})  # fmt: skip
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def name_bars(axes: Sequence[Axes], errors: Sequence[str]) -> None:
    """The errors' names beside the bars of the first panel, and so of all."""
    axes[0].set_yticks(range(len(errors)), [spoken(error) for error in errors])
    axes[0].invert_yaxis()  # the axes are shared: the first error is on top in all of them


def style_of(place: int) -> tuple[str, str]:
    """Colour and marker of the error in this place."""
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def is_on_features(error: str) -> bool:
    """Whether an error is that of features."""
    return error in METRICS and METRICS[error].on == "features"


def panels(columns: int, width: float, rows: int = 1, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of panels that share the vertical axis, row by row."""
    figure = Figure(figsize=(columns * width + 2, 2.8 * rows + 1), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).flat)
