"""For sphinx.ext.viewcode: from a page of source back to where the documentation has the object."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_BACK = re.compile(r'(?<=<a class="viewcode-back" href=")([^"#]+)\.html#tdcompress\.([\w.]+)(?=")')


def _mend(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Viewcode keeps one name for a module, whose objects may be documented by a longer and by a shorter one."""
    if not pagename.startswith("_modules/"):
        return
    objects = app.env.domains["py"].objects

    def named(found: re.Match[str]) -> str:
        page = posixpath.normpath(posixpath.join(posixpath.dirname(pagename), found[1]))
        names = [name for name, entry in objects.items() if entry.docname == page and name.endswith(f".{found[2]}")]
        return f"{found[1]}.html#{min(names, key=len)}" if names else found[0]

    context["body"] = _BACK.sub(named, context["body"])


def setup(app: Any) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("html-page-context", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
