"""What strategies of fine-tuning do, side by side: to the networks, and to how well an error orders them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

import tdcompress as td
from examples.paper.rises import rises, views
from examples.paper.tables import MEASURES, markdown_table, units_of
from tdcompress.study.drawing import COLOURS, MARKERS, METHOD_COLOURS, panels
from tdcompress.study.groupings import Grouping
from tdcompress.study.states import change_to, finetuned, strategies

ERROR = "relative_weights"  # whose τ the paper is about
BEFORE = "before"
_DPI = 150


def report(folder: Path, frame: pd.DataFrame, baseline: Mapping[str, float]) -> list[Path]:
    """Write `strategies.md` and draw `strategies.png`; nothing for a study without named strategies.

    Args:
        folder: for both.
        frame: one row a trial; those that a strategy failed for are left out.
        baseline: what the network reaches uncompressed, by measure.
    """
    names = strategies(frame.columns)
    if not names:
        return []
    frame = frame.dropna(subset=[f"{finetuned(name)}{measure}" for name in names for measure in baseline])
    measures = [f"test_{measure}" for measure in MEASURES if f"test_{measure}" in frame]
    lines = [*_reached(frame, measures, baseline), *_by_method(frame, measures[-1], baseline)]
    for measure in measures:
        lines += _orders(frame, measure)
    lines += _conditioned(frame, measures[-1])
    files = [folder / "strategies.md", folder / "strategies.png"]
    files[0].write_text("\n".join(lines), encoding="utf-8")
    picture(frame, measures, baseline).savefig(files[1], dpi=_DPI)
    return files


def only_the_first(frame: pd.DataFrame) -> pd.DataFrame:
    """The table without the columns of all named strategies but the first."""
    others = tuple(
        part for name in strategies(frame.columns)[1:] for part in (finetuned(name), change_to(finetuned(name)))
    )
    return frame[[column for column in frame if not column.startswith(others)]] if others else frame


def won_back(frame: pd.DataFrame, prefix: str, measure: str, baseline: Mapping[str, float]) -> float:
    """Which part of what compression costs a fine-tuning wins back, on the mean over trials: 1 is all of it.

    >>> frame = pd.DataFrame({"test_error": [0.1, 0.3], "finetuned_test_error": [0.1, 0.2]})
    >>> round(won_back(frame, "finetuned_", "test_error", {"test_error": 0.1}), 6)
    0.5
    """
    before, after = frame[measure].mean(), frame[f"{prefix}{measure}"].mean()
    return float((before - after) / (before - baseline[measure]))


def tau(frame: pd.DataFrame, grouping: Grouping, column: str, unit: td.Bootstrap | None = None) -> td.Correlation:
    """τ of the relative weight error with a performance, over a grouping."""
    return td.correlate(grouping.of(frame), ERROR, column, grouping.across, bootstrap=unit)


def picture(frame: pd.DataFrame, measures: list[str], baseline: Mapping[str, float]) -> Figure:
    """Three panels with a line a strategy: τ in every view, the error that is left by method, and the seconds."""
    columns = _columns(frame)
    figure, axes = panels(3, width=3.8)
    figure.set_figheight(1.8 + 0.34 * len(columns))
    measure = measures[-1]
    shown = views(frame)
    for place, grouping in enumerate(shown):
        found = [tau(frame, grouping, f"{prefix}{measure}", td.Bootstrap("trials")) for prefix in columns.values()]
        heights = [row + (place - (len(shown) - 1) / 2) * 0.22 for row in range(len(columns))]
        colour, marker = COLOURS[place], MARKERS[place]
        bounds = np.array([(one.low, one.high) for one in found], dtype=float)
        axes[0].hlines(heights, bounds[:, 0], bounds[:, 1], color=colour, linewidth=1)
        axes[0].plot([one.mean for one in found], heights, marker, color=colour, label=grouping.title, markersize=5)
    for place, (method, part) in enumerate(frame.groupby("method", sort=False)):
        left = [part[f"{prefix}{measure}"].mean() for prefix in columns.values()]
        axes[1].plot(left, range(len(columns)), MARKERS[place], color=METHOD_COLOURS[place], label=method)
    axes[1].axvline(baseline[measure], color="black", linestyle=":", linewidth=1.2, label="uncompressed")
    axes[1].set_xscale("log")
    axes[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1].xaxis.set_major_formatter(ScalarFormatter())
    axes[1].xaxis.set_minor_formatter(NullFormatter())
    axes[2].barh(range(len(columns)), [_seconds(frame, prefix) for prefix in columns.values()], color="0.6")
    spoken = MEASURES[measure.removeprefix("test_")]
    titles = (f"τ-a of {ERROR.replace('_', ' ')}", f"mean test {spoken}", "seconds a network (median)")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
    for axis in axes[:2]:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False, fontsize=8)
    axes[0].set_yticks(range(len(columns)), list(columns))
    axes[0].invert_yaxis()
    return figure


def _columns(frame: pd.DataFrame) -> dict[str, str]:
    """What the columns of a state begin with, by its name."""
    return {BEFORE: "", **{name: finetuned(name) for name in strategies(frame.columns)}}


def _seconds(frame: pd.DataFrame, prefix: str) -> float:
    return float(frame[f"{change_to(prefix)}_seconds"].median()) if prefix else 0.0


def _reached(frame: pd.DataFrame, measures: list[str], baseline: Mapping[str, float]) -> Iterator[str]:
    yield "**What each strategy reaches: mean test error by level, mean cross-entropy, and what it costs**"
    yield ""
    levels = sorted(frame["ratio"].unique())
    body = [["uncompressed", *[f"{100 * baseline[measures[0]]:.2f}"] * len(levels), "", "", ""]]
    body[0][len(levels) + 1] = f"{baseline[measures[-1]]:.3f}"
    for name, prefix in _columns(frame).items():
        error, last = f"{prefix}{measures[0]}", f"{prefix}{measures[-1]}"
        cells = [f"{100 * frame.loc[frame['ratio'] == level, error].mean():.2f}" for level in levels]
        won = f"{100 * won_back(frame, prefix, measures[-1], baseline):.0f}" if prefix else ""
        seconds = f"{_seconds(frame, prefix):.2f}" if prefix else ""
        body.append([name, *cells, f"{frame[last].mean():.3f}", won, seconds])
    header = ["strategy", *(f"error at {level:.0%}, %" for level in levels)]
    header += [MEASURES[measures[-1].removeprefix("test_")], "won back, %", "seconds, median"]
    yield from [*markdown_table(header, body), ""]


def _by_method(frame: pd.DataFrame, measure: str, baseline: Mapping[str, float]) -> Iterator[str]:
    methods = list(frame["method"].unique())
    yield f"**By method: mean test {MEASURES[measure.removeprefix('test_')]}, and how much of the loss is won back**"
    yield ""
    body = []
    for name, prefix in _columns(frame).items():
        cells = []
        for method in methods:
            part = frame[frame["method"] == method]
            share = f" ({100 * won_back(part, prefix, measure, baseline):.0f} %)" if prefix else ""
            cells.append(f"{part[f'{prefix}{measure}'].mean():.3f}{share}")
        body.append([name, *cells])
    yield from [*markdown_table(["strategy", *methods], body), ""]


def _orders(frame: pd.DataFrame, measure: str) -> Iterator[str]:
    """τ in every state, and how much it differs from that before, paired."""
    shown = views(frame)
    spoken = MEASURES[measure.removeprefix("test_")]
    yield f"**τ-a of relative weights with the test {spoken}; less that before, with 95 % over trials and over layers**"
    yield ""
    body = []
    for name, prefix in _columns(frame).items():
        cells = []
        for grouping in shown:
            cells.append(f"{tau(frame, grouping, f'{prefix}{measure}').mean:.2f}")
            cells.append(_difference(frame, grouping, f"{prefix}{measure}", measure) if prefix else "")
        body.append([name, *cells])
    header = ["strategy", *(cell for grouping in shown for cell in (grouping.title, "difference"))]
    yield from [*markdown_table(header, body), ""]


def _difference(frame: pd.DataFrame, grouping: Grouping, after: str, before: str) -> str:
    part = grouping.of(frame)
    found = rises(part, (before, after), ERROR, grouping.across, units_of(part))
    return ", ".join([f"{found[0].difference:+.2f}", *(f"[{one.low:+.2f}, {one.high:+.2f}]" for one in found)])


def _conditioned(frame: pd.DataFrame, measure: str) -> Iterator[str]:
    """By method: sensitivity and gradients; and whether the more sensitive of equal compressions end up worse."""
    gradients = [f"gradient{number}" for number in range(1, 9) if f"gradient{number}" in frame]
    if "sensitivity" not in frame:
        return
    yield "**The factors as they were decomposed: medians over the trials of a method**"
    yield ""
    body = []
    for method, part in frame.groupby("method", sort=False):
        spread = part[gradients].max(axis=1) / part[gradients].min(axis=1)
        norms = [f"{part[name].median():.2f}" if part[name].notna().any() else "" for name in gradients]
        body.append([str(method), f"{part['sensitivity'].median():.1f}", *norms, f"{spread.median():.1f}"])
    header = ["method", "sensitivity", *(f"gradient, stage {name.removeprefix('gradient')}" for name in gradients)]
    yield from [*markdown_table([*header, "largest / smallest gradient"], body), ""]
    starts = frame[frame.groupby(["layer", "method", "ratio"])["sensitivity"].transform("nunique") > 1]
    if starts.empty:
        return
    yield (
        f"**τ-a with the test {MEASURES[measure.removeprefix('test_')]} among random starts of one layer, method and "
        f"level ({', '.join(starts['method'].unique())}): mean ± standard error**"
    )
    yield ""
    body = [
        [name, *(_among_starts(starts, error, f"{prefix}{measure}") for error in ("sensitivity", ERROR))]
        for name, prefix in _columns(frame).items()
    ]
    yield from [*markdown_table(["strategy", "sensitivity", "relative weights"], body), ""]


def _among_starts(starts: pd.DataFrame, error: str, performance: str) -> str:
    """The mean of τ over the groups in which only the start differs, and its standard error."""
    groups = starts.groupby(["layer", "method", "ratio"])
    found = [td.kendall_tau(part[error].to_numpy(), part[performance].to_numpy()).tau for _, part in groups]
    spread = f" ± {np.std(found, ddof=1) / math.sqrt(len(found)):.2f}" if len(found) > 1 else ""
    return f"{np.mean(found):+.2f}{spread}"
