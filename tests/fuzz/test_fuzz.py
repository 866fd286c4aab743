"""A little of `make fuzz` on every run, and that it finds what it looks for."""

import mmap
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import tdcompress as td
from tests.fuzz.__main__ import TARGETS
from tests.fuzz.guards import listening
from tests.fuzz.mutations import changed_bytes, changed_json
from tests.fuzz.target import Bench, Target

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = 40


@pytest.mark.parametrize("name", TARGETS)
def test_wrong_files_are_taken_or_refused_and_no_more(name, tmp_path):
    bench = Bench(TARGETS[name], tmp_path)
    outcomes = [bench.outcome(*TARGETS[name].file(number, seed=1)) for number in range(FILES)]
    assert [outcome.finding for outcome in outcomes if outcome.finding] == []
    assert any(not outcome.accepted for outcome in outcomes)


def harmful(harm):
    """A target that reads "right" and does something to the path of all else."""

    def read(path):
        content = path.read_bytes()
        if content == b"harm":
            harm(path)
        if content != b"right":
            raise td.CompressionError("it is wrong.")

    return Target(lambda: {"file": b"right"}, (lambda content, random: b"harm",), read)


def _touched(size):
    """Memory that is new to the process: what an allocator hands out may be left over from other tests."""
    memory = mmap.mmap(-1, size)
    memory[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda path: os.system("true"), "it did: os.system"),
        (lambda path: subprocess.run([sys.executable, "--version"], check=True, stdout=subprocess.DEVNULL), "it did: "),
        (lambda path: eval("1 + 1"), "it did: compile"),
        (lambda path: pickle.loads(pickle.dumps(Path("x"))), "it did: pickle.find_class"),
        (lambda path: path.write_bytes(b"other"), "it did: open for writing"),
        (lambda path: path.unlink(), "it did: os.remove"),
        (lambda path: _touched(80 << 20), r"it took \d+ MiB"),
    ],
)
def test_harm_is_found(harm, finding, tmp_path):
    target = harmful(harm)
    outcome = Bench(target, tmp_path).outcome(*target.file(0, seed=0))
    assert re.match(finding, outcome.finding)


def test_what_is_left_behind_is_found_and_put_right(tmp_path):
    target = harmful(lambda path: None)
    bench = Bench(target, tmp_path)
    sneaky = Target(target.samples, target.mutations, lambda path: os.link(path, path.with_name("more")))
    assert "it did: os.link" in Bench(sneaky, tmp_path).outcome("file", b"harm").finding
    assert bench.outcome("file", b"harm").finding == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"right"


def test_a_codec_of_the_standard_library_is_no_harm(tmp_path):
    with listening() as heard:
        assert b"\x81".decode("cp1140") == "a"  # nothing else uses it, so that it is loaded here
    assert heard == []


def test_a_file_is_known_by_its_number():
    target = TARGETS["plans"]
    assert target.file(7, seed=0) == target.file(7, seed=0)
    assert len({target.file(number, seed=0)[1] for number in range(20)}) == 20


def test_mutations_change_what_they_are_given():
    content, text = bytes(range(256)) * 4, '{"a": [1, {"b": "c"}], "d": null}'
    assert sum(changed_bytes(content, Random(number)) != content for number in range(50)) > 40
    assert sum(changed_json(text, Random(number)) != text for number in range(50)) > 40
