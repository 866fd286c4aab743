"""For sphinx-gallery: a figure that no window system knows, where the last line of a block is its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Saves the figure that `figure` names, as `Plan.plot` and `tdcompress.study.plots` give them.

    Args:
        block: kind, source and line number of a part of an example.
        block_vars: what the example has defined, and where images go.
        gallery_conf: sphinx-gallery's settings.

    Returns:
        reStructuredText that shows it; nothing where the block does not end with its name.
    """
    figure = block_vars["example_globals"].get("figure")
    if not isinstance(figure, Figure) or block[1].rstrip().rpartition("\n")[2] != "figure":
        return ""
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=100)
    return figure_rst([path], gallery_conf["src_dir"])


def _get_sg_image_scraper() -> Callable[..., str]:
    """What sphinx-gallery asks a module for that is named among `image_scrapers`."""
    return scrape
