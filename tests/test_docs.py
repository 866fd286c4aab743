"""The documentation builds without a warning, and the links of the pages outside it lead somewhere."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.full
@pytest.mark.skipif(
    torch.__version__.startswith("2.6."),
    reason="torch 2.6 exports no BatchNorm to ONNX with today's onnxscript; the gallery does",
)
def test_the_documentation_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    pytest.importorskip("furo", reason="the documentation needs the extra dev")
    pytest.importorskip("sphinx_gallery", reason="the documentation needs the extra dev")
    # A copy: the build writes a source file for every page of the reference and of the gallery.
    made = shutil.ignore_patterns("_build", "api", "gallery")
    source = shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=made)
    shutil.copytree(ROOT / "examples" / "gallery", tmp_path / "examples" / "gallery")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", source, tmp_path / "html"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert built.returncode == 0, built.stderr
    assert "tdcompress.CPConv.from_conv" in (tmp_path / "html" / "api" / "tdcompress.CPConv.html").read_text("utf-8")
    assert not list(dead_links(tmp_path / "html"))


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value)
            if name in ("href", "src"):
                self.links.add(value)


def dead_links(folder):
    """Of links within the site: where each one is and what it leads to that is not there."""
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        if "_modules" in path.parts:
            continue  # its links back to the reference take all names of a file for those of one module
        for link in page.links:
            address = urllib.parse.urlsplit(link)
            if not address.scheme and not address.netloc:
                target = (path.parent / urllib.parse.unquote(address.path)).resolve() if address.path else path
                anchors = pages[target].anchors if target in pages else {address.fragment}
                if not target.exists() or urllib.parse.unquote(address.fragment) not in anchors:
                    yield path.name, link


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "one.html").write_text('<a href="two.html#there">1</a> <a href="two.html#not">2</a> <img src="no.png">')
    (tmp_path / "two.html").write_text(
        '<h1 id="there"></h1> <a href="https://example.org/no">3</a> <a href="#top">4</a>'
    )
    assert sorted(dead_links(tmp_path)) == [("one.html", "no.png"), ("one.html", "two.html#not")]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_within_the_repository_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize("module", ["", ".planning", ".report"])
def test_every_public_name_is_in_the_reference(module):
    listed = re.findall(r"^   ~tdcompress\.([\w.]+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE)
    public = importlib.import_module(f"tdcompress{module}")
    values = {name: getattr(public, name) for name in public.__all__}
    documented = {name for name, value in values.items() if inspect.isroutine(value) or inspect.isclass(value)}
    assert documented <= {name.rpartition(".")[2] for name in listed}
    assert len(listed) == len(set(listed))


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    entries = index.partition("```{toctree}")[2].split()
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= set(entries)
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("```{toctree}")[2].split()
    assert {f"reference/{page.stem}" for page in (ROOT / "docs" / "reference").glob("*.md")} <= set(reference)
