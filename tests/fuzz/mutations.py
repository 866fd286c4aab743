"""Files made wrong: bytes changed anywhere, and values changed inside JSON, so that they get past what reads bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    255,
    1 << 16,
    1 << 31,
    (1 << 63) - 1,
    1 << 64,
    10**400,
    0.0,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
]
WORDS = ["", "0", "cp", "dense", "__class__", "../../etc/passwd", "\x1b[2J", "\0", "\ud800", "os.system", "x" * 5000]
VALUES: list[Any] = [*NUMBERS, *WORDS, None, True, False, [], {}, [[]], [None], {"": {}}, [0] * 300, [[0, 1]]]


def changed_bytes(content: bytes, random: Random) -> bytes:
    """One to four changes: bits, bytes, numbers of four bytes, parts cut, doubled, moved, or made up."""
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        random.choice(_CHANGES)(changed, random)
    return bytes(changed)


def _flip(content: bytearray, random: Random) -> None:
    if content:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _overwrite(content: bytearray, random: Random) -> None:
    at = _place(content, random)
    content[at : at + 1] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80", random.randbytes(1)))


def _number(content: bytearray, random: Random) -> None:
    at = _place(content, random)
    number = random.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, random.getrandbits(32)))
    content[at : at + 4] = number.to_bytes(4, random.choice(("little", "big")))


def _cut(content: bytearray, random: Random) -> None:
    start = _place(content, random)
    del content[start : start + random.choice((1, 4, 100, len(content)))]


def _double(content: bytearray, random: Random) -> None:
    start = _place(content, random)
    part = content[start : start + random.choice((1, 8, 512))]
    content[start:start] = part * random.choice((1, 3))


def _move(content: bytearray, random: Random) -> None:
    start, size = _place(content, random), random.choice((1, 16, 300))
    part = content[start : start + size]
    del content[start : start + size]
    at = _place(content, random)
    content[at:at] = part


def _make_up(content: bytearray, random: Random) -> None:
    at = _place(content, random)
    content[at:at] = random.randbytes(random.choice((1, 4, 64)))


_CHANGES: list[Callable[[bytearray, Random], None]] = [_flip, _overwrite, _number, _cut, _double, _move, _make_up]


def _place(content: bytearray, random: Random) -> int:
    """Where to change something: half of the time near an end, where headers and directories are."""
    if not content:
        return 0
    near = min(len(content), 200)
    where = random.random()
    if where < 0.35:
        return random.randrange(near)
    return len(content) - 1 - random.randrange(near) if where < 0.5 else random.randrange(len(content))


def changed_json(text: str, random: Random) -> str:
    """One or two values replaced, removed, doubled or renamed, at any depth."""
    document = json.loads(text)
    for _ in range(random.choice((1, 1, 2))):
        if document:
            _change_value(*_inside(document, random), random)
    return json.dumps(document)


def _inside(document: Any, random: Random) -> tuple[Any, Any]:
    """A container of the document and a key in it, by a walk from the top: what is near the top comes up more often."""
    holder = document
    while True:
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or random.random() < 0.2:
            return holder, key
        holder = holder[key]


def _change_value(holder: Any, key: Any, random: Random) -> None:
    kind = random.choice(("replace", "replace", "replace", "remove", "double", "rename", "swap"))
    if kind == "remove":
        del holder[key]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, deepcopy(holder[key]))
    elif kind == "rename" and isinstance(holder, dict):
        holder[random.choice(WORDS)] = holder.pop(key)
    elif kind == "swap":
        other = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    elif type(holder[key]) is int and random.random() < 0.5:
        holder[key] += random.choice((-1, 1, 2))
    else:
        holder[key] = deepcopy(random.choice(VALUES))  # a second change may go into it
