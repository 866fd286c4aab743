"""Formulas as MathML, written when the pages are built: a browser draws them without a script or the network."""

from __future__ import annotations

from html import escape
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
_OPERATOR, _SPACE = f"{{{_NAMESPACE}}}mo", f"{{{_NAMESPACE}}}mspace"
_APPLY = "\N{FUNCTION APPLICATION}"  # unseen, between the name of a function and what it is applied to
_THIN = "0.1667em"
_logger = logging.getLogger(__name__)
ElementTree.register_namespace("", _NAMESPACE)


def mathml(tex: str, *, displayed: bool) -> str:
    """A formula in MathML, spaced as TeX does it.

    Args:
        tex: the formula, without dollars.
        displayed: whether it stands on a line of its own.

    Returns:
        The element `<math>`.

    Raises:
        MathError: docutils does not know a command of the formula.
    """
    written = tex2mathml(tex, as_block=displayed).replace("&ApplyFunction;", _APPLY)  # XML itself has no such name
    formula = ElementTree.fromstring(written)  # noqa: S314, docutils wrote it just now
    for row in formula.iter():
        parts = [None, *row, None]
        for before, part, after in zip(parts, parts[1:-1], parts[2:], strict=False):
            # MathML makes fences as high as what is between them, TeX only those behind \left and \right.
            if part.tag == _OPERATOR and part.text in "‖⟨⟩" and r"\left" not in tex:
                part.set("stretchy", "false")
            # TeX has a thin space on either side of a function with its argument, but none beside brackets and signs.
            if part.text == _APPLY and after is not None and after.tag != _OPERATOR:
                part.set("rspace", _THIN)
            named = after is not None and after.text == _APPLY
            if named and before is not None and (before.tag not in (_OPERATOR, _SPACE) or before.text == ")"):
                row.insert(list(row).index(part), ElementTree.Element(_SPACE, width=_THIN))
    return ElementTree.tostring(formula, encoding="unicode", short_empty_elements=False)


def _written(node: nodes.Element, *, displayed: bool) -> str:
    """What stands in a page for a formula; one that docutils cannot read stays in TeX, with a warning."""
    try:
        return mathml(node.astext(), displayed=displayed)
    except MathError as error:
        _logger.warning("a formula that docutils cannot write as MathML: %s", error, location=node)
        return f"<code>{escape(node.astext())}</code>"


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_written(node, displayed=False))
    raise nodes.SkipNode


def _displayed(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_written(node, displayed=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls: makes `html_math_renderer = "mathml"` known."""
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
