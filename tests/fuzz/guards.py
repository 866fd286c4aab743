"""What must not happen while a file is read that nobody vouches for: code run, files written, memory taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "subprocess.", "pty.")
_EVALUATES = ("exec", "compile", "pickle.find_class", "marshal.", "code.__new__", "ctypes.", "sqlite3.load_extension")
_REACHES = ("socket.connect", "socket.bind", "urllib.", "ftplib.", "http.client.")
_CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.",
)
FORBIDDEN = _RUNS + _EVALUATES + _REACHES + _CHANGES
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

_seen: list[str] | None = None  # what happened that must not, while somebody looks


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if (writes or event.startswith(FORBIDDEN)) and not _loads_a_codec():  # which is an event itself, and none of these
        _seen.append((f"open for writing: {arguments[0]!r}" if writes else f"{event}{arguments[:2]!r}")[:200])


def _loads_a_codec() -> bool:
    """Whether a module of the standard library's encodings is imported: a file may say how its text is written."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") != "encodings":
        frame = frame.f_back
    return frame is not None


@contextmanager
def listening() -> Iterator[list[str]]:
    """What Python's audit events tell of the block that must not happen there.

    Modules have to be imported before: an import evaluates too.
    """
    global _seen
    if not getattr(sys, "_tdcompress_heard", False):
        sys.addaudithook(_hear)  # there is no way to take one off again
        sys._tdcompress_heard = True  # type: ignore[attr-defined]
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


class Memory:
    """By how many bytes the process grew at most since it was made; always 0 where the system does not tell."""

    def __init__(self) -> None:
        self._status = Path("/proc/self/status")
        self._known = self._status.exists()
        if self._known:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak
            self._before = self._read("VmRSS")

    def grown(self) -> int:
        """The bytes."""
        return max(0, self._read("VmHWM") - self._before) if self._known else 0

    def _read(self, name: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024
