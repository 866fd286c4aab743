"""The documentation builds without a warning, and the links of the pages outside it lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tdcompress

ROOT = Path(__file__).parents[1]


def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="the documentation needs the extra dev")
    pytest.importorskip("myst_parser", reason="the documentation needs the extra dev")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees"]
    built = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "html"], capture_output=True, encoding="utf-8", check=False
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "html" / "index.html").is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_within_the_repository_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize("name", tdcompress.__all__)
def test_every_public_name_is_in_the_reference(name):
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf":: tdcompress\.{name}$", page, re.MULTILINE)


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    entries = index.partition("```{toctree}")[2].split()
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= set(entries)
