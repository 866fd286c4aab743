"""Kendall's τ of a study beside the paper's: as rows, as text for the screen, as Markdown, and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

import tdcompress as td
from examples.paper.reference import Published
from examples.paper.runner import ERRORS

LEVELS = (0.5, 0.75, 0.9)  # those of the paper's figures 2 and 3
_KEYS = ("layer", "method", "ratio")
_MEASURES = {"error": "classification error", "cross_entropy": "cross-entropy"}


@dataclass(frozen=True)
class View:
    """Which trials are compared with which.

    Attributes:
        name: "all", "layers", "methods", or a level such as "75%".
        across: the columns that vary within a group.
        ratios: the levels that are looked at.
        published: what the paper's table calls it: its columns `across` and `compression`.
    """

    name: str
    across: tuple[str, ...]
    ratios: tuple[float, ...]
    published: tuple[str, str]

    @property
    def title(self) -> str:
        """The name for a reader, such as "all, 50–90 %"."""
        return f"{'layers and methods' if self.name.endswith('%') else self.name}, {self.levels}"

    @property
    def levels(self) -> str:
        """The levels for a reader, such as "50–90 %"."""
        ends = dict.fromkeys(f"{100 * ratio:.0f}" for ratio in (self.ratios[0], self.ratios[-1]))
        return f"{'–'.join(ends)} %"

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table of results that are looked at."""
        return frame[frame["ratio"].isin(self.ratios)]


@dataclass(frozen=True)
class Tau:
    """One number of the table.

    Attributes:
        view: which trials were compared.
        error: the approximation error's name.
        measure: "error" or "cross_entropy": what it was compared with, on the test part.
        fine_tuned: after fine-tuning or before.
        found: this study's τ.
        paper: the paper's mean and standard deviation, if it has them.
    """

    view: View
    error: str
    measure: str
    fine_tuned: bool
    found: td.Correlation
    paper: tuple[float, float] | None


def performance_column(measure: str, fine_tuned: bool) -> str:
    """The column of a table of results, such as `test_error` or `finetuned_test_cross_entropy`."""
    return f"finetuned_test_{measure}" if fine_tuned else f"test_{measure}"


def phases(frame: pd.DataFrame) -> tuple[bool, ...]:
    """Before fine-tuning and, if there was any, after: (False,) or (False, True)."""
    return (False, True) if performance_column("error", True) in frame else (False,)


def views(frame: pd.DataFrame) -> Iterator[View]:
    """The views that a table of results allows: a group needs two trials to compare."""
    there = sorted(frame["ratio"].unique())
    high = tuple(ratio for ratio in there if ratio in LEVELS)
    wanted = [
        View("all", _KEYS, high, ("all", "50-90%")),
        View("layers", ("layer",), high, ("layers", "50-90%")),
        View("methods", ("method",), high, ("methods", "50-90%")),
        *(View(f"{ratio:.0%}", _KEYS[:2], (ratio,), ("layers and methods", f"{ratio:.0%}")) for ratio in there),
    ]
    for view in wanted:
        held = ["run", *(key for key in _KEYS if key not in view.across)]
        sizes = view.of(frame).groupby(held).size()
        if len(sizes) and sizes.min() > 1:
            yield view


def taus(frame: pd.DataFrame, published: Published) -> list[Tau]:
    """Every τ-a of the study's table: views × errors × measures × before and after fine-tuning.

    Args:
        frame: one row a trial; `Store.frame`.
        published: which of the paper's results to set beside.
    """
    found = []
    for view in views(frame):
        part = view.of(frame)
        for error in ERRORS:
            for fine_tuned in phases(frame):
                for measure in _MEASURES:
                    column = performance_column(measure, fine_tuned)
                    correlation = td.correlate(part, error, column, view.across)
                    paper = published.tau(error, *view.published, fine_tuned=fine_tuned)
                    found.append(Tau(view, error, measure, fine_tuned, correlation, paper))
    return found


def as_text(rows: Sequence[Tau], published: Published) -> str:
    """The table with aligned columns, for a screen."""
    lines = []
    for title, header, body in _blocks(rows, published):
        lines += ["", title, ""]
        cells = [header, *body]
        widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
        rule = ["─" * width for width in widths]
        for row in (header, rule, *body):
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join(lines).strip("\n")


def as_markdown(rows: Sequence[Tau], published: Published) -> str:
    """The same as Markdown tables."""
    lines = []
    for title, header, body in _blocks(rows, published):
        lines += [f"**{title}**", "", _piped(header), _piped(["---"] + ["---:"] * (len(header) - 1))]
        lines += [*map(_piped, body), ""]
    return "\n".join(lines)


def in_words(frame: pd.DataFrame, published: Published) -> str:
    """What came out at `all`, in plain words and with its uncertainty, one paragraph a phase."""
    rows = [row for row in taus(frame, published) if row.view.name == "all" and row.measure == "error"]
    return "\n".join(_sentences(frame, rows, published, phase) for phase in phases(frame) if rows)


def _blocks(rows: Sequence[Tau], published: Published) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and cells of one table before and one after fine-tuning."""
    runs = max((len(row.found.per_run) for row in rows), default=0)
    beside = "the paper" if published.same_network else f"the paper's {published}"
    for fine_tuned in sorted({row.fine_tuned for row in rows}):
        when = "after" if fine_tuned else "before"
        over = f"mean ± std over {runs} runs" if runs > 1 else "one run"
        title = f"Kendall's τ-a with the test performance {when} fine-tuning, {over}"
        header = ["across", "approximation error", *_MEASURES.values(), beside]
        yield title, header, list(_cells([row for row in rows if row.fine_tuned == fine_tuned]))


def _cells(rows: Iterable[Tau]) -> Iterator[list[str]]:
    by_line: dict[tuple[View, str], dict[str, Tau]] = {}
    for row in rows:
        by_line.setdefault((row.view, row.error), {})[row.measure] = row
    before = None
    for (view, error), measures in by_line.items():
        taus_here = [measures[measure].found for measure in _MEASURES]
        found = [_plus_minus(tau.mean, tau.std, len(tau.per_run)) for tau in taus_here]
        paper = measures["error"].paper
        yield [
            view.title if view != before else "",
            spoken(error),
            *found,
            "" if paper is None else _plus_minus(*paper, 5),
        ]
        before = view


def _sentences(frame: pd.DataFrame, rows: Sequence[Tau], published: Published, fine_tuned: bool) -> str:
    rows = sorted((row for row in rows if row.fine_tuned == fine_tuned), key=lambda row: -row.found.mean)
    top, view = rows[0], rows[0].view
    best = [row.error for row in rows if math.isclose(row.found.mean, top.found.mean)]
    first_run = view.of(frame[frame["run"] == frame["run"].min()])
    one = td.kendall_tau(first_run[top.error], first_run[performance_column("error", fine_tuned)])
    errors = "the error that orders the test classification errors best is"
    if len(best) > 1:
        errors = "the errors that order the test classification errors best, and equally well, are"
    text = (
        f"{'After' if fine_tuned else 'Before'} fine-tuning, over all layers, methods and levels of {view.levels}, "
        f"{errors} {_listed(best)}: τ = {_over_runs(top.found)}, which is the right order of about "
        f"{50 * (1 + top.found.mean):.0f} in 100 pairs of compressions. One run's {one.n} trials pin τ down to "
        f"{one.low:.2f} .. {one.high:.2f} (95 % interval)"
    )
    close = [row.error for row in rows if row.found.mean >= one.low and row.error not in best]
    text += f", which also holds {_listed(close)}: the order among these is not settled." if close else "."
    if "relative_weights" not in best:
        (weights,) = (row for row in rows if row.error == "relative_weights")
        text += f" Relative weights has τ = {weights.found.mean:.2f}."
    return text + _beside_the_paper(best, close, rows, published)


def _beside_the_paper(best: Sequence[str], close: Sequence[str], rows: Sequence[Tau], published: Published) -> str:
    printed = {row.error: row.paper[0] for row in rows if row.paper is not None}
    if not printed:
        return ""
    theirs = max(printed, key=lambda error: printed[error])
    where = "the paper" if published.same_network else f"the paper's nearest network ({published})"
    verdict = "the two differ"
    if theirs in best:
        verdict = "the two agree"
    elif theirs in close:
        verdict = "one of those between which this study cannot tell, so it does not contradict"
    return f" In {where} it is {spoken(theirs)} with τ = {printed[theirs]:.2f}: {verdict}."


def spoken(error: str) -> str:
    """A metric's name for a reader: "relative weights"."""
    return error.replace("_", " ")


def _plus_minus(mean: float, std: float, runs: int) -> str:
    return f"{mean:6.3f} ± {std:.3f}" if runs > 1 else f"{mean:6.3f}"


def _over_runs(tau: td.Correlation) -> str:
    runs = len(tau.per_run)
    return f"{tau.mean:.2f} ± {tau.std:.2f} over {runs} runs" if runs > 1 else f"{tau.mean:.2f} in one run"


def _listed(errors: Sequence[str]) -> str:
    names = [spoken(error) for error in errors]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.strip() for cell in cells)} |"
