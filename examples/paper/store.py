"""A study's results on disk: a table that grows row by row, and the settings that it was made with."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from examples.paper.grid import Trial
from tdcompress.errors import CompressionError

WEIGHTS = "model.safetensors"  # of a network that was trained for the study


class Store:
    """`results.csv` and `settings.json` in a folder.

    A row is written as its trial ends, so an interrupted study loses the trial in flight and no more; opening
    the folder again goes on from there.

    Attributes:
        folder: where they are.
        table: the path of `results.csv`.
        notes: what `settings.json` holds.

    Args:
        folder: made if it is missing.
        choices: all that the results depend on, as JSON has it: lists, not tuples.
        fresh: throw away the results and weights that are in the folder.

    Raises:
        CompressionError: the folder holds the results of other choices, or a file there cannot be read.
    """

    def __init__(self, folder: Path, choices: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder = folder
        self.table = folder / "results.csv"
        self._settings = folder / "settings.json"
        if fresh:
            for file in (self.table, self._settings, folder / WEIGHTS):
                file.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.notes = self._checked(choices)
        self._done = self._recovered()

    def __contains__(self, trial: Trial) -> bool:
        return trial in self._done

    def __len__(self) -> int:
        return len(self._done)

    def append(self, trial: Trial, measured: Mapping[str, Any]) -> None:
        """Write one trial's row."""
        row = {**vars(trial), **measured}
        new = not self.table.exists()
        with self.table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        self._done.add(trial)

    def note(self, **facts: Any) -> None:
        """Keep facts about the study, such as its duration, beside its settings."""
        self.notes |= facts
        self._settings.write_text(json.dumps(self.notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def frame(self) -> pd.DataFrame:
        """The table so far, one row a trial, in the order of measurement."""
        return pd.read_csv(self.table, dtype={"rank": str})

    def _checked(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        if not self._settings.exists():
            if self.table.exists():
                raise CompressionError(f"{self.table} has no settings.json beside it; choose another --output")
            return {"choices": dict(choices)}
        try:
            notes = json.loads(self._settings.read_text(encoding="utf-8"))
            before = notes["choices"]
        except (ValueError, KeyError, TypeError) as error:
            raise CompressionError(f"{self._settings} cannot be read ({error!r}); start over with --fresh") from None
        differing = list(_differences(before, choices))
        if differing:
            raise CompressionError(
                f"{self.folder} holds a study with other settings: {'; '.join(differing)}. "
                "Choose another --output, or throw that study away with --fresh."
            )
        return notes

    def _recovered(self) -> set[Trial]:
        """The trials in the table; half a row, left by an interruption, is cut off."""
        if not self.table.exists():
            return set()
        text = self.table.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if not whole:
            self.table.unlink()
            return set()
        if whole != text:
            self.table.write_text(whole, encoding="utf-8")
        rows = csv.DictReader(whole.splitlines())
        return {Trial(row["layer"], row["method"], float(row["ratio"]), int(row["run"])) for row in rows}


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two trees of settings, in words; only the leaves are named."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif before != now:
        shown = ["on" if isinstance(value, Mapping) else value for value in (before, now)]
        yield f"{name} was {shown[0]}, now {shown[1]}"
