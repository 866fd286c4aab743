"""What the examples read: Fashion-MNIST, CIFAR-10 in its three forms, and text."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random

import torch

from examples.paper.data import Splits, cifar10, fashion_mnist
from examples.paper.text import text
from tests.examples.test_data import cifar10_files, write_cifar10, write_fashion_mnist
from tests.fuzz.mutations import changed_bytes
from tests.fuzz.target import Target


def _unpacked(content: bytes, random: Random) -> bytes:
    """What is inside a gzip file changed."""
    return gzip.compress(changed_bytes(gzip.decompress(content), random), compresslevel=1, mtime=0)


def _all_in(write: Callable[[Path], object]) -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def _used(splits: Splits) -> None:
    for part in (splits.train, splits.validation, splits.test):
        assert len(part.images) == len(part.labels), "there are not as many labels as images"
        part.images.to(torch.float32).sum()


@cache
def _fashion_mnist() -> Mapping[str, bytes]:
    return _all_in(write_fashion_mnist)


@cache
def _cifar10_python() -> Mapping[str, bytes]:
    return {name: content for name, content in cifar10_files("python").items() if "_batch" in name}


@cache
def _cifar10_binary() -> Mapping[str, bytes]:
    return {name: content for name, content in cifar10_files("binary").items() if "_batch" in name}


@cache
def _cifar10_archive() -> Mapping[str, bytes]:
    return {f"{kind}.tar.gz": _archive(kind) for kind in ("python", "binary")}


def _archive(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_cifar10(Path(folder), kind, "archive").read_bytes()


@cache
def _texts() -> Mapping[str, bytes]:
    words = b"A dictionary of the English language, in alphabetical order. " * 40
    return {"plain.txt": words, "packed.gz": gzip.compress(words, mtime=0)}


def _text_changed(content: bytes, random: Random) -> bytes:
    return _unpacked(content, random) if content[:2] == b"\x1f\x8b" else changed_bytes(content, random)


def _cifar10(path: Path) -> None:
    _used(cifar10(path, validation_size=10, images_per_file=None))


DATA = {
    "fashion-mnist": Target(
        _fashion_mnist,
        (changed_bytes, _unpacked),
        lambda path: _used(fashion_mnist(path.parent, validation_size=10)),
    ),
    "cifar10-python": Target(_cifar10_python, (changed_bytes,), lambda path: _cifar10(path.parent)),
    "cifar10-binary": Target(_cifar10_binary, (changed_bytes,), lambda path: _cifar10(path.parent)),
    "cifar10-archive": Target(_cifar10_archive, (changed_bytes, _unpacked), _cifar10),
    "text": Target(_texts, (changed_bytes, _text_changed), lambda path: _used(text(path, context=8))),
}
