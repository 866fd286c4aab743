"""What importing loads, and which file imports which: no two of the package each other, not even inside functions."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tdcompress

FRESH = """
import sys, typing, numpy, torch

def loaded(*names):
    return {*names} & {*sys.modules}

states = torch.random.get_rng_state(), numpy.random.get_state()[1].copy()
import tdcompress as td

heavy = "pandas", "matplotlib", "scipy", "tltorch", "tensorly", "transformers"
assert not loaded(*heavy, "tdcompress.study"), sys.modules
assert torch.equal(torch.random.get_rng_state(), states[0])
assert (numpy.random.get_state()[1] == states[1]).all()
import tdcompress.study

assert not loaded(*heavy, "distributed"), sys.modules
sys.modules["pandas"] = None  # as where it is not installed
assert typing.get_type_hints(td.Report.to_pandas)["return"] is typing.Any
"""

ROOT = Path(tdcompress.__file__).parents[1]


def modules(package: Path) -> dict[str, Path]:
    """The files by the names that they are imported by."""
    named = {path.relative_to(package.parent).with_suffix("").parts: path for path in package.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in named.items()}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The known modules that a file imports from, wherever in the file: what is named, not the packages above it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} is a relative import; the package's are absolute"
            if node.module not in known:
                continue
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inner)


def circle(package: Path) -> list[str]:
    """The first circle of imports between a package's files; empty if there is none."""
    known = modules(package)
    graph = {name: set(imported(path, known)) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_importing_loads_nothing_heavy_and_moves_nothing_and_what_is_not_installed_may_be_anything():
    subprocess.run([sys.executable, "-W", "error", "-c", FRESH], check=True)


def test_no_two_files_of_the_package_import_each_other():
    assert circle(ROOT / "tdcompress") == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from house.b import f", "import house.a"),
        ("from house import b", "def f():\n    from house.a import g"),
        ("import typing\nif typing.TYPE_CHECKING:\n    from house.b import f", "from house.c import f"),
    ],
    ids=["plainly", "inside a function", "for types, by way of a third"],
)
def test_a_circle_is_found(tmp_path, first, second):
    house = tmp_path / "house"
    house.mkdir()
    files = {"__init__": "from house.a import g", "a": first, "b": second, "c": "from house.a import g"}
    for name, text in files.items():
        (house / f"{name}.py").write_text(text)
    assert {"house.a", "house.b"} <= set(circle(house))
    (house / "a.py").write_text("")
    assert circle(house) == []
