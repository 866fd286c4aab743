"""What is fuzzed, one wrong file at a time."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import tdcompress as td
from tests.fuzz.guards import Memory, listening

MOST_MEMORY = 64 << 20  # bytes that a process may grow by over a file; the samples have 0.4 MB at most

Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """One reader of files.

    Attributes:
        samples: files that are right, by name, all in one folder.
        mutations: ways to make one of them wrong.
        read: gives the file to the reader and uses what comes of it. It raises whatever that raises, and
            `AssertionError` where something was changed that must not be.
        beside: ends of the names of files that the reader may leave in the folder.
        writes: whether it may change the file that it was given.
    """

    samples: Callable[[], Mapping[str, bytes]]
    mutations: tuple[Mutate, ...]
    read: Callable[[Path], object]
    beside: tuple[str, ...] = ()
    writes: bool = False

    def file(self, number: int, seed: int) -> tuple[str, bytes]:
        """The name and the content of a wrong file; the same for the same number and seed."""
        random = Random(f"{seed} {number}")
        samples = self.samples()
        name = random.choice(sorted(samples))
        return name, random.choice(self.mutations)(samples[name], random)


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        accepted: whether the reader took it; a changed pixel is no damage.
        grown: by how many bytes the process grew meanwhile.
        finding: what went wrong, if anything did.
    """

    accepted: bool
    grown: int
    finding: str = ""


class Bench:
    """A folder with a target's samples, in which one after the other is replaced by a wrong one."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self._samples = dict(target.samples())
        for name, content in self._samples.items():
            (folder / name).write_bytes(content)
        for name, content in self._samples.items():  # what is right is taken, and imports what reading needs
            target.read(folder / name)
            self._put_back(name)
            for damaged in (content[: len(content) // 2], b"", b"{}", content[:-3]):
                (folder / name).write_bytes(damaged)
                with suppress(td.CompressionError):
                    target.read(folder / name)
                self._put_back(name)

    def outcome(self, name: str, content: bytes) -> Outcome:
        """Let the target read a file of that name and content."""
        (self.folder / name).write_bytes(content)
        accepted, finding, memory = True, "", Memory()
        with warnings.catch_warnings(), listening() as heard:
            warnings.simplefilter("ignore")
            try:
                self.target.read(self.folder / name)
            except td.CompressionError:
                accepted = False
            except Exception as error:  # whatever else it is, it is a finding
                finding = f"{type(error).__name__}: {error}"[:300]
        grown = memory.grown()
        if heard:
            finding = finding or f"it did: {heard[0]}"
        if grown > MOST_MEMORY:
            finding = finding or f"it took {grown >> 20} MiB"
        changes = self._changes(name, content)
        return Outcome(accepted, grown, finding or changes)

    def _changes(self, name: str, content: bytes) -> str:
        """What the reader did to the folder; afterwards the folder is as it was."""
        added = {path.name for path in self.folder.iterdir()} - self._samples.keys()
        strange = [one for one in sorted(added) if not one.endswith(self.target.beside or "/")]
        path = self.folder / name
        changed = not self.target.writes and (not path.exists() or path.read_bytes() != content)
        self._put_back(name)
        return f"it left {strange} behind" if strange else "it changed the file" if changed else ""

    def _put_back(self, name: str) -> None:
        for path in self.folder.iterdir():
            if path.name not in self._samples:
                path.unlink()
        (self.folder / name).write_bytes(self._samples[name])


def packed(write: Callable[[Path], object]) -> bytes:
    """The bytes of a file that a function writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()
