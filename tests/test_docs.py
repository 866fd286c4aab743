"""The documentation builds without a warning, and the links of the pages outside it lead somewhere."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="the documentation needs the extra dev")
    pytest.importorskip("myst_parser", reason="the documentation needs the extra dev")
    # A copy: the build writes a source file for every page of the reference.
    source = shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "api"))
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", source, tmp_path / "html"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "html" / "index.html").is_file()
    assert "tdcompress.CPConv.from_conv" in (tmp_path / "html" / "api" / "tdcompress.CPConv.html").read_text("utf-8")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_within_the_repository_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize("module", ["", ".decompositions", ".ranks", ".planning", ".report", ".study"])
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
