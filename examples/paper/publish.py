"""Copies a finished study into the documentation: `python -m examples.paper.publish garipov-fmnist`."""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.paper.presets import PRESETS
from tdcompress.errors import CompressionError

DOCS = Path(__file__).parents[2] / "docs" / "study"
_LARGE = 200_000  # bytes from which a table is compressed


def publish(results: Path, folder: Path) -> list[Path]:
    """Replace a folder's tables and figures by those of a study.

    Args:
        results: where the study wrote its own.
        folder: in the documentation.

    Returns:
        The files that are there now.

    Raises:
        CompressionError: the study has not ended.
    """
    wanted = [*sorted(results.glob("*.png")), *sorted(results.glob("*.md")), results / "settings.json"]
    table = results / "results.csv"
    if not table.exists():
        raise CompressionError(f"{table} is missing; run the study to its end first")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in wanted:
        shutil.copyfile(file, folder / file.name)
    if table.stat().st_size > _LARGE:
        packed = gzip.compress(table.read_bytes(), mtime=0)  # without the time, so that equal tables stay equal
        (folder / "results.csv.gz").write_bytes(packed)
    else:
        shutil.copyfile(table, folder / "results.csv")
    return sorted(folder.iterdir())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper.publish", description=__doc__)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--results", help="where the study wrote; results/PRESET by default")
    parser.add_argument("--name", help="of the folder in docs/study; the preset's by default")
    options = parser.parse_args(arguments)
    folder = DOCS / (options.name or options.preset)
    try:
        files = publish(Path(options.results or Path("results") / options.preset), folder)
    except CompressionError as error:
        print("error:", error, file=sys.stderr)
        return 2
    print(f"In {folder}:", ", ".join(file.name for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
