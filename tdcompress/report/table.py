"""Tables as text: for a terminal, in Markdown, and counts in three digits."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(
    rows: Sequence[Sequence[str]],  # the first is the header
    remarks: Sequence[str] = (),
) -> str:
    """A table for a terminal, with the remarks below it.

    >>> print(aligned([["layer", "rank"], ["conv1", "27"]], ["the head was left."]))
    layer  rank
    -----------
    conv1  27
    the head was left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *remarks])


def markdown(
    rows: Sequence[Sequence[str]],  # the first is the header
    remarks: Sequence[str] = (),
) -> str:
    """A table in Markdown, with the remarks below it, each a paragraph.

    >>> print(markdown([["layer", "rank"], ["conv1", "27"]]))
    | layer | rank |
    | --- | --- |
    | conv1 | 27 |
    """
    header, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]
    # A blank line before each, or Markdown would make one paragraph of them.
    return "\n".join(lines + [line for remark in remarks for line in ("", remark)])


def short_count(number: float) -> str:
    """A count with three digits and a letter.

    >>> short_count(512), short_count(36864), short_count(2_500_000_000)
    ('512', '36.9 K', '2.5 G')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"
