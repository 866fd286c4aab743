"""The files of Fashion-MNIST (IDX) and of CIFAR-10 (Python and binary), read without executing anything.

What is not as its format says raises a `DataError` that names the file, what was found, and what to do.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from pathlib import Path

import numpy as np

from examples.paper.pickles import PickleError, read_arrays
from tdcompress.errors import CompressionError

CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CIFAR10_IMAGE = (3, 32, 32)
_CIFAR10_PIXELS = math.prod(CIFAR10_IMAGE)
LARGEST = 1 << 28  # bytes: all of CIFAR-10 are 184 million
_AGAIN = "get it again from its source"


class DataError(CompressionError):
    """A data file is missing or is not what its format says."""


def read_idx(path: Path) -> np.ndarray:
    """One gzip-compressed IDX file of unsigned bytes, the format of MNIST and Fashion-MNIST.

    Args:
        path: a file such as `train-images-idx3-ubyte.gz`.

    Returns:
        The array, uint8: (N, H, W) for images, (N,) for labels.

    Raises:
        DataError: the file is missing, is not gzip, is cut short, or its header does not fit its contents.
    """
    contents = gunzip(path)
    if contents[:3] != b"\x00\x00\x08" or contents[3:4] not in (b"\x01", b"\x03"):
        found = contents[:4].hex(" ") or "nothing"
        raise DataError(
            f"{path}: IDX labels start with 00 00 08 01 and IDX images with 00 00 08 03, but this file with "
            f"{found}; {_AGAIN}"
        )
    dimensions = contents[3]
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(contents[at : at + 4], "big") for at in range(4, start, 4)]
    if len(contents) != start + math.prod(shape):
        raise DataError(
            f"{path}: its header says {' × '.join(map(str, shape))}, so {start + math.prod(shape)} bytes, "
            f"but there are {len(contents)}; {_AGAIN}"
        )
    return np.frombuffer(contents, dtype=np.uint8, offset=start).reshape(shape)


def gunzip(path: Path, most: int = LARGEST) -> bytes:
    """What is in a gzip-compressed file.

    Args:
        path: the file.
        most: the most bytes that may come out: a few kilobytes can hold gigabytes of zeros.

    Raises:
        DataError: the file is missing, is not gzip, is cut short, or holds more.
    """
    try:
        with gzip.open(path) as file:
            contents = file.read(most + 1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; put it there, or name the folder that has it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be decompressed ({error}); {_AGAIN}") from error
    if len(contents) > most:
        raise DataError(f"{path}: holds more than {most >> 20} MiB, the most that is decompressed; {_AGAIN}")
    return contents


def read_cifar10(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """CIFAR-10 from a folder or a `.tar.gz` archive, in the Python or the binary format.

    Args:
        path: the archive, the folder that holds the six files, or the folder above that one.

    Returns:
        For each of `data_batch_1` .. `data_batch_5` and `test_batch`, images (N, 3, 32, 32) and labels (N,),
        both uint8.

    Raises:
        DataError: a file is missing, is cut short, or is not what its format says.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; name CIFAR-10's folder or its .tar.gz archive")
    files = _from_archive(path) if path.is_file() else _from_folder(path)
    suffix = ".bin" if any(name.endswith(".bin") for name in files) else ""
    missing = [name + suffix for name in CIFAR10_FILES if name + suffix not in files]
    if missing:
        raise DataError(
            f"{path}: of CIFAR-10's files {CIFAR10_FILES[0]}{suffix} .. {CIFAR10_FILES[-1]}{suffix}, "
            f"{', '.join(missing)} not found; {_AGAIN}, or name the folder or the archive that has all six"
        )
    parse = parse_cifar10_binary if suffix else parse_cifar10_pickle
    return {name: parse(files[name + suffix], source=f"{path}: {name}{suffix}") for name in CIFAR10_FILES}


_WANTED = {name + suffix for name in CIFAR10_FILES for suffix in ("", ".bin")}


def _from_folder(folder: Path) -> dict[str, bytes]:
    for place in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        files = {name: (place / name).read_bytes() for name in _WANTED if (place / name).is_file()}
        if files:
            return files
    return {}


def _from_archive(path: Path) -> dict[str, bytes]:
    """The six files by name, whatever folder they are in; nothing is written to disk."""
    files: dict[str, bytes] = {}
    contents = gunzip(path)
    try:
        with tarfile.open(fileobj=io.BytesIO(contents), mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                # A sparse member may claim any size.
                if name in _WANTED and member.isreg() and not member.issparse():
                    stream = archive.extractfile(member)
                    files[name] = b"" if stream is None else stream.read()
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a .tar.gz archive ({error}); {_AGAIN}") from error
    return files


def parse_cifar10_binary(contents: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """One file of CIFAR-10's binary format: records of one label and 3072 pixels.

    Args:
        contents: the file's bytes.
        source: what to call the file in an error.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), both uint8.

    Raises:
        DataError: the size is no multiple of a record, or a label is above 9.
    """
    record = 1 + _CIFAR10_PIXELS
    if not contents or len(contents) % record:
        raise DataError(
            f"{source}: CIFAR-10's records are {record} bytes long, but the file's {len(contents)} bytes are "
            f"{len(contents) / record:.2f} of them; {_AGAIN}"
        )
    records = np.frombuffer(contents, dtype=np.uint8).reshape(-1, record)
    return records[:, 1:].reshape(-1, *CIFAR10_IMAGE), _checked_labels(records[:, 0], source)


def parse_cifar10_pickle(contents: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """One file of CIFAR-10's Python format: a pickled dictionary of `data` and `labels`.

    Python's unpickler is not asked: `read_arrays` reads plain values and arrays, and refuses the rest.

    Args:
        contents: the file's bytes.
        source: what to call the file in an error.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), both uint8.

    Raises:
        DataError: the file is cut short, names anything but arrays, or does not hold CIFAR-10's dictionary.
    """
    try:
        batch = read_arrays(contents)
    except PickleError as error:
        raise DataError(f"{source}: {error}; {_AGAIN}") from None
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (_CIFAR10_PIXELS,):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{source}: `data` must be uint8 (N, {_CIFAR10_PIXELS}), found {found}; {_AGAIN}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{source}: `labels` must be a list of integers; {_AGAIN}")
    if len(labels) != len(data):
        raise DataError(f"{source}: {len(data)} images but {len(labels)} labels; {_AGAIN}")
    clipped = [min(max(label, -1), 10) for label in labels]  # one that fits no integer of NumPy is no class either
    return data.reshape(-1, *CIFAR10_IMAGE), _checked_labels(np.array(clipped, dtype=np.int64), source)


def _checked_labels(labels: np.ndarray, source: str) -> np.ndarray:
    if labels.size and not 0 <= labels.min() <= labels.max() <= 9:
        raise DataError(f"{source}: labels must be 0 .. 9, found {labels.min()} .. {labels.max()}; {_AGAIN}")
    return labels.astype(np.uint8)
