"""Sphinx configuration: MyST pages, the API reference from the docstrings, the furo theme."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes

import tdcompress

project = "tdcompress"
author = "the tdcompress authors"
copyright = "2026, the tdcompress authors"
release = version = tdcompress.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "study", "benchmarks"]  # folders of tables and figures that pages include
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "LayerSelector", "MetricFunction", "Rank", "Variant")}
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "tdcompress"
html_show_sphinx = False

_CODE = re.compile(r"`([^`]+)`")
_ALIAS = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")  # how Sphinx writes an alias inside another type


def _to_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The docstrings write code as Markdown does, and `*` and `|` as formulas do."""
    example = False
    for number, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = _CODE.split(line)
            parts[::2] = [re.sub(r"([*|])", r"\\\1", text) for text in parts[::2]]
            parts[1::2] = [f"``{code}``" for code in parts[1::2]]
            lines[number] = "".join(parts)


def _name_aliases(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write the aliases of `autodoc_type_aliases` by their names wherever they stand."""
    return tuple(text and _ALIAS.sub(r"\1", text) for text in (signature, returns))


def _trim_examples(app: Any, document: nodes.document) -> None:
    """Drop the empty line that ends an example in the Markdown, where doctest needs it."""
    for block in document.findall(nodes.literal_block):
        text = block.astext().rstrip()
        block.children = [nodes.Text(text)]
        block.rawsource = text


def setup(app: Any) -> None:
    app.connect("doctree-read", _trim_examples)
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("autodoc-process-docstring", _to_restructured_text, priority=400)  # before napoleon, at 500
