"""A file from the network, kept once its checksum is right."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

from examples.paper.formats import DataError

_PIECE = 1 << 20  # bytes read at a time


def cache_folder() -> Path:
    """Where downloaded files are kept: `tdcompress` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdcompress"


def download(address: str, target: Path, md5: str, *, timeout: float = 60.0) -> None:
    """Makes sure that `target` is the file at `address`.

    A file that is there already with the right checksum is kept. Another is replaced, and only by a complete
    one: whoever reads `target` meanwhile never sees a part of it.

    Args:
        address: an http, https or file address.
        target: where the file goes; missing folders are made.
        md5: the checksum that the publisher gives, hexadecimal.
        timeout: seconds that the server may stay silent.

    Raises:
        DataError: the address cannot be read, or what it gave has another checksum; nothing is kept then.
    """
    if target.is_file() and _md5(target) == md5:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        arrived = Path(folder) / target.name
        try:
            request = urllib.request.urlopen(address, timeout=timeout)  # noqa: S310, a file's address is meant to do
            with request as response, arrived.open("wb") as file:
                while piece := response.read(_PIECE):
                    file.write(piece)
        except (OSError, ValueError, http.client.HTTPException) as error:  # a URLError is an OSError
            raise DataError(
                f"{address}: cannot be downloaded ({error}); without a network, get the file elsewhere and "
                "name the folder or the archive that has it"
            ) from error
        if (found := _md5(arrived)) != md5:
            raise DataError(f"{address}: gave a file with MD5 {found}, not {md5}; try again later, or get it elsewhere")
        arrived.replace(target)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
