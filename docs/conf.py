"""Sphinx configuration: MyST pages, a page for every public name from its docstring, the furo theme."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.inspect import TypeAliasForwardRef

import tdcompress
from tdcompress.layers import FactorizedConv
from tdcompress.layers.method import Method
from tdcompress.methods import METHODS

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "tdcompress"
author = "the tdcompress authors"
copyright = "2026, the tdcompress authors"
release = version = tdcompress.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "backlinks",
    "mathml",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "gallery/used", "study", "benchmarks", "which"]  # what pages include, and what is made
_EXAMPLES = Path(__file__).parents[1] / "examples" / "gallery"
exclude_patterns += [  # pages that an earlier build made of an example that is not there any more
    f"gallery/{page.name}"
    for page in (Path(__file__).parent / "gallery").glob("plot_*.rst")
    if not (_EXAMPLES / f"{page.stem}.py").exists()
]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what a method fills in is described once, on the page of its base class
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "LayerSelector", "MetricFunction", "Rank", "Variant")}
python_maximum_signature_line_length = 88
add_module_names = False

# A file system that ignores case would keep one page of `Plan` and `plan`.
autosummary_filename_map = {
    f"tdcompress.{name}": f"tdcompress.{name}-function"
    for name in tdcompress.__all__
    if name.islower() and name.capitalize() in tdcompress.__all__
}
# A page of a layer has what users call; what a method fills in is on that of `Method` and in the guide to extending.
_STACKS = [FactorizedConv, *METHODS.values()]
_filled_in = {"extra_repr", "form", "forms", "group_forms", "of_form", "of_forms", *vars(Method)}
_filled_in |= {"factorized", "forward", "growth", "middle_weight", "stage_specs", "weighted"}  # the package calls these
for _base in {base for stack in _STACKS for base in stack.__mro__ if issubclass(base, FactorizedConv)} - {*_STACKS}:
    _filled_in.update(vars(_base))
_filled_in -= {"rank", "weight"}
autosummary_context = {
    "stacks": [stack.__name__ for stack in _STACKS],
    "filled_in": ", ".join(sorted(name for name in _filled_in if not name.startswith("_"))),
}

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "scipy": ("https://docs.scipy.org/doc/scipy", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "tensorly": ("https://tensorly.org/stable", None),
}
intersphinx_timeout = 5  # seconds
_PRIVATE_MODULES = {  # where classes are defined -> where their documentation has them
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.nn.modules.container.Sequential": "torch.nn.Sequential",
    "torch.nn.modules.linear.Linear": "torch.nn.Linear",
    "torch.nn.modules.conv.Conv2d": "torch.nn.Conv2d",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "torch._C.Generator": "torch.Generator",
    "concurrent.futures._base.Executor": "concurrent.futures.Executor",
    "concurrent.futures.process.ProcessPoolExecutor": "concurrent.futures.ProcessPoolExecutor",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
}

sphinx_gallery_conf = {
    "examples_dirs": str(_EXAMPLES),
    "gallery_dirs": "gallery",
    "filename_pattern": "plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,
    "backreferences_dir": "gallery/used",
    "doc_module": ("tdcompress",),
    "image_scrapers": ("matplotlib", "figures"),
    "ignore_repr_types": "matplotlib",
    "min_reported_time": 10**6,  # how long an example takes depends on the machine
}

# Of torch.onnx about torch; no example can do anything about it.
warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "tdcompress"
html_show_sphinx = False
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
pygments_dark_style = "github-dark"

_CODE = re.compile(r"`([^`]+)`")
_AS_IT_IS = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)
_TOGETHER = re.compile(r"(?<=\d) (?=%)|(?<=\d,) (?=[-+−]?[\d.]+\])")  # the spaces in `50 %` and in `[0.41, 0.68]`
_MADE = re.compile(r"<(function [\w.<>]+|factory)>")  # how Python writes a default that is a function, or made by one


def _to_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The docstrings write code as Markdown does, and `*` and `|` as formulas do."""
    if what in ("attribute", "property") and lines:
        lines[:1] = lines[0].replace(": ", ":\n", 1).splitlines()  # napoleon takes what is before a colon for a type
    example = False
    for number, line in enumerate(lines):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        if not example:
            parts = _CODE.split(line)
            parts[::2] = [re.sub(r"([*|])", r"\\\1", text) for text in parts[::2]]
            parts[1::2] = [f"``{code}``" for code in parts[1::2]]
            lines[number] = "".join(parts)


def _leave_out(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write `...` for such a default, for Sphinx cannot read a signature in which it stands as Python writes it."""
    return signature and _MADE.sub("...", signature), returns


def _trim_examples(app: Any, document: nodes.document) -> None:
    """Drop the empty line that ends an example in the Markdown, where doctest needs it."""
    for block in document.findall(nodes.literal_block):
        text = block.astext().rstrip()
        block.clear()
        block += nodes.Text(text)
        block.rawsource = text


def _keep_together(app: Any, document: nodes.document) -> None:
    """A number and its per cent sign do not stand on two lines, nor the ends of an interval."""
    for text in list(document.findall(nodes.Text)):
        if _TOGETHER.search(text) and not isinstance(text.parent, _AS_IT_IS):
            text.parent.replace(text, nodes.Text(_TOGETHER.sub("\N{NO-BREAK SPACE}", text)))


def _shape_cells(app: Any, document: nodes.document) -> None:
    """In a table, a number keeps its unit beside it, and sentences do not become columns of single words."""
    for cell in document.findall(nodes.entry):
        written = cell.astext()
        if len(written) > 40:
            cell["classes"].append("sentences")
        elif len(written) < 16 and written.lstrip("+-")[:1].isdigit():
            for text in list(cell.findall(nodes.Text)):
                if not isinstance(text.parent, _AS_IT_IS):
                    text.parent.replace(text, nodes.Text(text.replace(" ", "\N{NO-BREAK SPACE}")))


def _public_place(app: Any, env: Any, node: Any, contnode: Any) -> None:
    """Look a class up where its own documentation has it; intersphinx comes after this."""
    node["reftarget"] = _PRIVATE_MODULES.get(node["reftarget"], node["reftarget"])


def _without_other_sites(record: logging.LogRecord) -> bool:
    """Where another project's site cannot be reached, names of its classes are no links, and that is all."""
    if "failed to reach any of the inventories" in str(record.msg):
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


def _silence() -> None:
    """accessible-pygments, which furo imports, has the root logger print what any package notes."""
    with suppress(ImportError):
        import_module("a11y_pygments")
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.WARNING)


def setup(app: Any) -> None:
    _silence()
    TypeAliasForwardRef.__repr__ = lambda alias: alias.name  # what stands inside another type, such as `int | Rank`
    logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(_without_other_sites)
    app.connect("missing-reference", _public_place, priority=400)  # before intersphinx, at 500
    app.connect("doctree-read", _trim_examples)
    app.connect("doctree-read", _keep_together)
    app.connect("doctree-read", _shape_cells)
    app.connect("autodoc-process-signature", _leave_out)
    app.connect("autodoc-process-docstring", _to_restructured_text, priority=400)  # before napoleon, at 500
