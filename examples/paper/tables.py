"""Kendall's τ of a study beside the paper's: as rows, as text for the screen, as Markdown, and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pandas as pd

import tdcompress as td
from examples.paper.reference import Published
from tdcompress.correlation.bootstrap import Unit
from tdcompress.study.groupings import Grouping, Tau, performances_of, taus
from tdcompress.study.states import states

MEASURES = {"error": "classification error", "cross_entropy": "cross-entropy", "bits_per_byte": "bits per byte"}
_PLURALS = {"error": "classification errors", "bits_per_byte": "bits per byte"}  # of those that sentences are about
_LEVELS = {0.5, 0.75, 0.9}  # those of the paper's figures 2 and 3
# How the paper's table calls a grouping: its columns `across` and `compression`.
_PUBLISHED = {name: (name, "50-90%") for name in ("all", "layers", "methods")}
_UNITS: tuple[Unit, ...] = ("trials", "layers")
_FINE_TUNED = {"test_error": False, "finetuned_test_error": True}  # the performances that the paper has


def rows_of(frame: pd.DataFrame) -> list[Tau]:
    """Every τ-a of the study's table: groupings × errors × measures × states of the network."""
    columns = [column for measure in MEASURES for column in performances_of(frame, f"test_{measure}").values()]
    return taus(frame, columns)


def printed(row: Tau, published: Published | None) -> tuple[float, float] | None:
    """The paper's mean and standard deviation of the same τ; None where it has none."""
    grouping = row.grouping
    if (
        published is None
        or row.performance not in _FINE_TUNED
        or (grouping.name in _PUBLISHED and not set(grouping.ratios) <= _LEVELS)
    ):
        return None
    across, levels = _PUBLISHED.get(grouping.name, ("layers and methods", grouping.name))
    return published.tau(row.error, across, levels, fine_tuned=_FINE_TUNED[row.performance])


def as_text(rows: Sequence[Tau], published: Published | None) -> str:
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


def as_markdown(rows: Sequence[Tau], published: Published | None) -> str:
    """The same as Markdown tables."""
    lines = []
    for title, header, body in _blocks(rows, published):
        lines += [f"**{title}**", "", *markdown_table(header, body), ""]
    return "\n".join(lines)


def differences(frame: pd.DataFrame, rows: Iterable[Tau], published: Published | None) -> str:
    """Ours less the paper's τ with the test classification error, as Markdown, at `all`, `layers` and `methods`.

    The intervals are those of ours, by bootstrap over trials and over whole layers. The paper's numbers are taken
    as they are printed: its trials are not published, so their own uncertainty is not in the intervals.
    """
    header = ["fine-tuning", "across", "approximation error", "the paper", "ours", "difference"]
    header += ["95 %, over trials", "95 %, over layers"]
    body = []
    for row in rows:
        theirs = printed(row, published)
        if theirs is None or row.grouping.name not in _PUBLISHED:
            continue
        cells = ["after" if _FINE_TUNED[row.performance] else "before", row.grouping.title, spoken(row.error)]
        cells += [f"{theirs[0]:.3f}", f"{row.correlation.mean:.3f}", f"{row.correlation.mean - theirs[0]:+.3f}"]
        body.append(cells + [_less(frame, row, unit, theirs[0]) for unit in _UNITS])
    return "\n".join(markdown_table(header, body, left=3)) if body else ""


def in_words(frame: pd.DataFrame, rows: Iterable[Tau], published: Published | None) -> str:
    """What came out at `all`, in plain words and with its uncertainty, one paragraph a state of the network."""
    rows = [row for row in rows if row.grouping.name == "all"]
    shown = {
        state: [row for row in rows if row.performance == column]
        for state, column in performances_of(frame, f"test_{_main(frame)}").items()
    }
    return "\n".join(_sentences(frame, rows, published, state) for state, rows in shown.items() if rows)


def units_of(frame: pd.DataFrame) -> tuple[Unit, ...]:
    """What a bootstrap can draw; there is nothing to draw among the layers of one."""
    return _UNITS if frame["layer"].nunique() > 1 else _UNITS[:1]


def spoken(error: str) -> str:
    """A metric's name for a reader: "relative weights"."""
    return error.replace("_", " ")


def _main(frame: pd.DataFrame) -> str:
    """The measure that sentences are about: the first that the table has."""
    return next(measure for measure in MEASURES if f"test_{measure}" in frame)


def _less(frame: pd.DataFrame, row: Tau, unit: Unit, theirs: float) -> str:
    """The interval of ours less a number; empty where there is but one layer to draw from."""
    part = row.grouping.of(frame, row.performance)
    if unit not in units_of(part):
        return ""
    found = td.correlate(part, row.error, row.performance, row.grouping.across, bootstrap=td.Bootstrap(unit))
    assert found.low is not None
    assert found.high is not None
    return f"{found.low - theirs:+.2f} .. {found.high - theirs:+.2f}"


def _blocks(rows: Sequence[Tau], published: Published | None) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and cells of one table a state of the network."""
    runs = max((len(row.correlation.per_run) for row in rows), default=0)
    over = f"mean ± std over {runs} runs" if runs > 1 else "one run"
    for state, prefix in states(row.performance for row in rows).items():
        columns = {f"{prefix}test_{measure}": spoken for measure, spoken in MEASURES.items()}
        shown = [row for row in rows if row.performance in columns]
        title = f"Kendall's τ-a with the test performance {state}, {over}"
        there = {row.performance for row in shown}
        header = ["across", "approximation error", *(columns[column] for column in columns if column in there)]
        if published is not None:
            header.append("the paper" if published.same_network else f"the paper's {published}")
        if shown:
            yield title, header, list(_cells(shown, published))


def _cells(rows: Iterable[Tau], published: Published | None) -> Iterator[list[str]]:
    by_line: dict[tuple[Grouping, str], list[Tau]] = {}
    for row in rows:
        by_line.setdefault((row.grouping, row.error), []).append(row)
    before = None
    for (grouping, error), measures in by_line.items():
        taus = [row.correlation for row in measures]
        cells = [_plus_minus(tau.mean, tau.std, len(tau.per_run)) for tau in taus]
        if published is not None:
            theirs = next((both for row in measures if (both := printed(row, published))), None)
            cells.append("" if theirs is None else _plus_minus(*theirs, 5))
        yield [grouping.title if grouping != before else "", spoken(error), *cells]
        before = grouping


def _sentences(frame: pd.DataFrame, rows: Sequence[Tau], published: Published | None, state: str) -> str:
    rows = sorted(rows, key=lambda row: -row.correlation.mean)
    top, grouping = rows[0], rows[0].grouping
    best = [row.error for row in rows if math.isclose(row.correlation.mean, top.correlation.mean)]
    performances = f"the test {_PLURALS[_main(frame)]}"
    errors = f"the error that orders {performances} best is"
    if len(best) > 1:
        errors = f"the errors that order {performances} best, and equally well, are"
    text = (
        f"{state.capitalize()}, over all layers, methods and levels of {grouping.levels}, "
        f"{errors} {_listed(best)}: τ = {_over_runs(top.correlation)}, which is the right order of about "
        f"{50 * (1 + top.correlation.mean):.0f} in 100 pairs of compressions."
    )
    close = _not_settled(frame, top, [row.error for row in rows if row.error not in best])
    text += "".join(_in_doubt(unit, errors) for unit, errors in close.items())
    if "relative_weights" not in best:
        (weights,) = (row for row in rows if row.error == "relative_weights")
        text += f" Relative weights has τ = {weights.correlation.mean:.2f}."
    return text + _beside_the_paper(best, [error for errors in close.values() for error in errors], rows, published)


def _not_settled(frame: pd.DataFrame, top: Tau, others: Sequence[str]) -> dict[str, list[str]]:
    """Which errors a paired bootstrap cannot tell from the best one, by what was drawn: trials, and whole layers."""
    part = top.grouping.of(frame, top.performance)
    found: dict[str, list[str]] = {}
    for unit in units_of(part):
        ask = partial(td.compare, part, across=top.grouping.across, bootstrap=td.Bootstrap(unit))
        found[unit] = [error for error in others if ask(top.error, error, top.performance).low <= 0]
    return found


def _in_doubt(unit: str, close: Sequence[str]) -> str:
    drawn = "other such trials" if unit == "trials" else "other layers"
    lead = f"its lead over {_listed(close)} is not settled" if close else "it would stay ahead of the others"
    return f" With {drawn}, {lead} (paired bootstrap, 95 %)."


def _beside_the_paper(
    best: Sequence[str], close: Sequence[str], rows: Sequence[Tau], published: Published | None
) -> str:
    theirs = {row.error: both[0] for row in rows if (both := printed(row, published))}
    if not theirs or published is None:
        return ""
    their_best = max(theirs, key=lambda error: theirs[error])
    where = "the paper" if published.same_network else f"the paper's nearest network ({published})"
    verdict = "the two differ"
    if their_best in best:
        verdict = "the two agree"
    elif their_best in close:
        verdict = "one of those between which this study cannot tell, so it does not contradict"
    return f" In {where} it is {spoken(their_best)} with τ = {theirs[their_best]:.2f}: {verdict}."


def _plus_minus(mean: float, std: float, runs: int) -> str:
    return f"{mean:6.3f} ± {std:.3f}" if runs > 1 else f"{mean:6.3f}"


def _over_runs(tau: td.Correlation) -> str:
    runs = len(tau.per_run)
    return f"{tau.mean:.2f} ± {tau.std:.2f} over {runs} runs" if runs > 1 else f"{tau.mean:.2f} in one run"


def _listed(errors: Sequence[str]) -> str:
    names = [spoken(error) for error in errors]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a table, of which the first `left` columns are texts and the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(cell.strip() for cell in row)} |" for row in (header, rule, *body)]
