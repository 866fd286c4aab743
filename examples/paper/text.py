"""English text as bytes: windows of a dictionary, or of any file, each with the bytes that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.paper.data import Split, Splits
from examples.paper.formats import DataError, gunzip

DEBIAN_GCIDE = Path("/usr/share/dictd/gcide.dict.dz")  # the package dict-gcide
CONTEXT = 256  # bytes of a window
_WINDOWS = 16  # of a block; whole blocks are held out
_MOST = 1 << 30  # bytes that are decompressed
_HELD_OUT = 0.01  # the share of blocks for validation, and again for the test


def text(path: str | Path | None = None, *, context: int = CONTEXT, seed: int = 0) -> Splits:
    """A text in windows: whole blocks of 16 of them, drawn at random, are for validation (1 %) and for the test (1 %).

    The blocks come from everywhere in the text, since the end of a dictionary is unlike its beginning.

    Args:
        path: a text file of any encoding, compressed by gzip or not. Without it, the Collaborative International
            Dictionary of English (40 MB), where Debian's package `dict-gcide` is installed.
        context: bytes of a window.
        seed: decides which blocks are held out.

    Returns:
        Splits whose `images` are the windows (N, context) and whose `labels` (N, context) are the bytes that follow
        each byte of them; uint8. They are not standardised: `mean` is 0 and `std` 1.

    Raises:
        DataError: the file is missing, broken, too short for three blocks, or more than 1 GiB once decompressed.
    """
    if path is None and not DEBIAN_GCIDE.exists():
        raise DataError(
            f"{DEBIAN_GCIDE}: no such file; install Debian's package dict-gcide, or name a text file of ten megabytes "
            "or more"
        )
    path = Path(path or DEBIAN_GCIDE)
    contents = torch.from_numpy(np.frombuffer(_read(path), dtype=np.uint8).copy())
    size = _WINDOWS * context
    count = (len(contents) - 1) // size
    if count < 3:
        raise DataError(f"{path}: {len(contents)} bytes are too few; it takes {3 * size + 1} at least")
    windows = contents[: count * size + 1].unfold(0, context + 1, context).reshape(count, _WINDOWS, context + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(_HELD_OUT * count))

    def part(blocks: Tensor) -> Split:
        chosen = windows[blocks.sort().values].flatten(0, 1)
        return Split(chosen[:, :-1], chosen[:, 1:])

    train, validation, test = order[2 * held_out :], order[:held_out], order[held_out : 2 * held_out]
    return Splits(path.name, part(train), part(validation), part(test), torch.zeros(1), torch.ones(1))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        return gunzip(path, _MOST) if compressed else path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
