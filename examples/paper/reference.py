"""The paper's own numbers: the ranks it used and the τ it found (see the files in published/)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tdcompress.errors import CompressionError

_FOLDER = Path(__file__).parent / "published"
_RANK_COLUMNS = {
    "cp": ("cp_rank",),
    "tucker": ("tucker_rank_out", "tucker_rank_in"),
    "tt": ("tt_rank_1", "tt_rank_2", "tt_rank_3"),
}


@dataclass(frozen=True)
class Published:
    """One network and data set of the paper.

    Attributes:
        model: as the paper's tables name it.
        dataset: likewise.
        same_network: whether the study at hand repeats this one, or this one is only the nearest to it.
    """

    model: str
    dataset: str
    same_network: bool = True

    def __str__(self) -> str:
        return f"{self.model}, {self.dataset}"

    def rank(self, layer: str, method: str, ratio: float) -> tuple[int, ...]:
        """The rank that the paper used for a layer.

        Args:
            layer: its name, as in `named_modules()`.
            method: "cp", "tucker" or "tt".
            ratio: share of the layer's parameters to remove: 0.1, 0.25, 0.5, 0.75 or 0.9.

        Raises:
            CompressionError: the paper printed no such rank.

        >>> Published("GaripovNet", "F-MNIST").rank("conv2", "tt", 0.9)
        (40, 4, 12)
        """
        for row in _read("ranks.csv"):
            asked = (row["model"], row["layer"], row["compression"]) == (self.model, layer, f"{ratio:.0%}")
            if asked and method in _RANK_COLUMNS:
                return tuple(int(row[column]) for column in _RANK_COLUMNS[method])
        raise CompressionError(
            f"the paper printed no rank of {self.model} for layer {layer!r}, method {method!r}, ratio={ratio}; "
            "leave it out or choose ranks='ours'"
        )

    def tau(
        self, error: str, across: str, levels: str, *, fine_tuned: bool, split: str = "test"
    ) -> tuple[float, float] | None:
        """Mean and standard deviation over five runs of the paper's τ-a; None where it printed none.

        Args:
            error: a metric's name.
            across: "all", "layers", "methods", or "layers and methods".
            levels: "50-90%", or one level such as "75%".
            fine_tuned: after fine-tuning or before.
            split: which images the classification error was measured on.

        >>> Published("GaripovNet", "F-MNIST").tau("relative_weights", "all", "50-90%", fine_tuned=False)
        (0.7752, 0.0207)
        """
        performance = "with_finetuning" if fine_tuned else "without_finetuning"
        wanted = (self.model, self.dataset, across, levels, error, split, performance)
        columns = ("model", "dataset", "across", "compression", "error", "split", "performance")
        for row in _read("kendall_tau.csv"):
            if tuple(row[column] for column in columns) == wanted:
                return float(row["tau_mean"]), float(row["tau_std"])
        return None


@cache
def _read(file: str) -> list[dict[str, str]]:
    with (_FOLDER / file).open(newline="") as lines:
        return list(csv.DictReader(lines))
