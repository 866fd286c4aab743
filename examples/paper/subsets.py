"""Layers chosen in other ways: does τ depend on which layers of a network are compared?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
from matplotlib.lines import Line2D
from torch import nn

import tdcompress as td
from examples.paper.blocks import BasicBlock
from examples.paper.tables import MEASURES, markdown_table, spoken
from tdcompress.study.drawing import panels, style_of
from tdcompress.study.groupings import HIGH, comparable, errors_of

PAPER = (
    "layer1.1.conv2",
    "layer2.0.conv1",
    "layer2.1.conv1",
    "layer3.0.conv2",
    "layer3.0.downsample.0",
    "layer3.1.conv1",
    "layer4.1.conv1",
    "layer4.1.conv2",
)  # the layers of ResNet-18 that the paper decomposed
EVERY = "all"
_BY_ORDER = ("first", "middle", "last", "small", "medium", "large")  # thirds by depth, and by size
_LEAST = 6  # layers of a study from which on subsets of it say something
_FEWEST = 3  # layers of a subset: a bootstrap of two knows nothing
_ACROSS = {"all": ("layer", "method", "ratio"), "layers": ("layer",)}


def subsets(model: nn.Module, layers: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Some of a study's layers, chosen in several ways, by name; only those with three layers and more.

    `all`; `paper`, the eight of the paper's ResNet-18; those of one place in a block, such as `conv1`, the first in
    each, `downsample`, or `attn.c_attn`; `stride-two`, larger than 1×1; and thirds, by depth (`first`, `middle`,
    `last`) and by the size of the weight (`small`, `medium`, `large`).

    Args:
        model: the network.
        layers: of the study, in the network's order.

    Example:
        >>> model = nn.Sequential(*(BasicBlock(4, 4) for _ in range(3)))
        >>> subsets(model, [f"{block}.conv{number}" for block in range(3) for number in (1, 2)])["conv1"]
        ('0.conv1', '1.conv1', '2.conv1')
    """
    modules = {name: model.get_submodule(name) for name in layers}
    found = {EVERY: tuple(layers), "paper": PAPER if _has_papers(model, layers) else ()}
    places = {name: _place(name) for name in layers}
    for place in dict.fromkeys(filter(None, places.values())):
        found[place] = tuple(name for name in layers if places[name] == place)
    found["stride-two"] = tuple(name for name, module in modules.items() if _halves(module))
    by_size = sorted(layers, key=lambda name: model.get_parameter(f"{name}.weight").numel())
    found |= zip(_BY_ORDER, _thirds(layers) + _thirds(by_size), strict=True)
    return {name: chosen for name, chosen in found.items() if len(chosen) >= _FEWEST}


def subset(model: nn.Module, layers: Sequence[str], name: str) -> tuple[str, ...]:
    """One of the subsets.

    Raises:
        CompressionError: there is none of this name.
    """
    found = subsets(model, layers)
    if name not in found:
        raise td.CompressionError(f"no subset {name!r} of these layers; choose one of {', '.join(found)}")
    return found[name]


def by_subset(frame: pd.DataFrame, chosen: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """τ-a with the cross-entropy, or else with the first measure that there is, of every error in every subset.

    The levels are those from 50 % on, as in the paper's figures 2 and 3. The intervals are by bootstrap over whole
    layers.

    Args:
        frame: one row a trial, before fine-tuning.
        chosen: the layers of each subset.

    Returns:
        One row a subset, grouping and error: `subset`, `layers` (how many), `across`, `error`, `tau`, `low`, `high`.
    """
    rows = []
    for name, layers in chosen.items():
        part = frame[frame["layer"].isin(layers) & (frame["ratio"] >= HIGH)]
        for across, columns in _ACROSS.items():
            compared = comparable(part, columns)
            if compared["layer"].nunique() < 2:
                continue
            for error in errors_of(frame):
                tau = td.correlate(compared, error, performance(frame), columns, bootstrap=td.Bootstrap("layers"))
                numbers = {"tau": tau.mean, "low": tau.low, "high": tau.high}
                count = compared["layer"].nunique()
                rows.append({"subset": name, "layers": count, "across": across, "error": error, **numbers})
    return pd.DataFrame(rows)


def performances(frame: pd.DataFrame, chosen: Mapping[str, Sequence[str]], column: str) -> pd.DataFrame:
    """The mean performance over the layers of every subset, by level and method, for layers that all methods can take.

    A level that a method reaches in some of the layers alone would compare other layers; those that lack a method there
    are left out for all.

    Args:
        frame: one row a trial, before fine-tuning.
        chosen: the layers of each subset.
        column: of the performance.

    Returns:
        One row a subset and level, with `subset`, `ratio`, `layers` (how many) and a column for every method.
    """
    rows = []
    methods = list(dict.fromkeys(frame["method"]))
    means = frame.groupby(["ratio", "layer", "method"])[column].mean().unstack("method")[methods].dropna()
    for name, layers in chosen.items():
        part = means[means.index.get_level_values("layer").isin(layers)]
        for ratio, there in part.groupby("ratio"):
            rows.append({"subset": name, "ratio": ratio, "layers": len(there), **there.mean()})
    return pd.DataFrame(rows)


def performance(frame: pd.DataFrame) -> str:
    """The column that subsets are compared by: one without ties, if there is one."""
    wanted = ["cross_entropy", *MEASURES]
    return next(f"test_{measure}" for measure in wanted if f"test_{measure}" in frame)


def report(folder: Path, frame: pd.DataFrame, model: nn.Module, layers: Sequence[str]) -> list[Path]:
    """Write `subsets.md` and draw `subsets.png`; nothing for a study of few layers.

    Args:
        folder: for both.
        frame: one row a trial.
        model: the network, for the shapes of its layers.
        layers: of the study.
    """
    if len(layers) < _LEAST:
        return []
    chosen: dict[str, tuple[str, ...]] = {}
    for name, some in subsets(model, layers).items():
        if set(some) not in map(set, chosen.values()):  # the last layers may be the largest, too
            chosen[name] = some
    table = by_subset(frame, chosen)
    measure = MEASURES[performance(frame).removeprefix("test_")]
    errors = list(dict.fromkeys(table["error"]))
    lines = [f"**τ-a with the test {measure} before fine-tuning, by subset of the layers**", ""]
    body = []
    for (name, count, across), part in table.groupby(["subset", "layers", "across"], sort=False):
        cells = {row.error: f"{row.tau:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in part.itertuples()}
        body.append([name, str(count), across, *(cells[error] for error in errors)])
    lines += markdown_table(["subset", "layers", "across", *map(spoken, errors)], body, left=1)
    lines += ["", *_performances(frame, {name: chosen[name] for name in chosen if name not in _BY_ORDER})]
    files = [folder / "subsets.md", folder / "subsets.png"]
    files[0].write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(table, errors, measure, files[1])
    return files


def _performances(frame: pd.DataFrame, chosen: Mapping[str, Sequence[str]]) -> list[str]:
    """Their table, by the first measure of the study."""
    measure = next(one for one in MEASURES if f"test_{one}" in frame)
    table = performances(frame[frame["ratio"] >= HIGH], chosen, f"test_{measure}")
    methods, scale = list(table.columns[3:]), 100 if measure == "error" else 1
    unit = " in %" if measure == "error" else ""
    body = [
        [row["subset"], f"{100 * row['ratio']:.0f} %", f"{row['layers']}", *(f"{scale * row[m]:.2f}" for m in methods)]
        for row in table.to_dict("records")
    ]
    title = f"**Test {MEASURES[measure]}{unit} with one layer compressed, mean over the layers of the subset**"
    return [title, "", *markdown_table(["subset", "removed", "layers", *methods], body, left=1)]


def _draw(table: pd.DataFrame, errors: Sequence[str], measure: str, file: Path) -> None:
    """τ of each error in each subset, a line an error, with its interval."""
    names = list(dict.fromkeys(table["subset"]))
    figure, axes = panels(len(_ACROSS), width=4.6)
    figure.set_figheight(1.6 + 0.42 * len(names))
    for axis, across in zip(axes, _ACROSS, strict=True):
        for place, error in enumerate(errors):
            part = table[(table["across"] == across) & (table["error"] == error)]
            heights = [
                names.index(name) + (place - (len(errors) - 1) / 2) / (1.4 * len(errors)) for name in part["subset"]
            ]
            colour, marker = style_of(place)
            axis.hlines(heights, part["low"], part["high"], color=colour, linewidth=1, alpha=0.6)
            axis.plot(part["tau"], heights, marker, color=colour, markersize=4)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set_title(f"across {across}" if across != "all" else "all trials")
        axis.set_xlabel(f"Kendall's τ-a with the {measure}")
        axis.grid(axis="x", color="0.9")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    styles = [(spoken(error), *style_of(place)) for place, error in enumerate(errors)]
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=name) for name, c, m in styles]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.savefig(file, dpi=150)


def _place(name: str) -> str:
    """What a layer is called within its numbered block; empty outside of blocks.

    >>> _place("layer2.0.downsample.0"), _place("transformer.h.3.attn.c_attn"), _place("conv1")
    ('downsample', 'attn.c_attn', '')
    """
    parts = name.split(".")
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else ""


def _has_papers(model: nn.Module, layers: Sequence[str]) -> bool:
    """Whether the paper's layers are there, and are those of a ResNet-18: ResNet-50 has others of the same names."""
    return set(PAPER) <= set(layers) and isinstance(model.get_submodule("layer1.1"), BasicBlock)


def _halves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.stride) > 1 and max(module.kernel_size) > 1


def _thirds(layers: Sequence[str]) -> list[tuple[str, ...]]:
    ends = [round(part * len(layers) / 3) for part in range(4)]
    return [tuple(layers[start:end]) for start, end in pairwise(ends)]
