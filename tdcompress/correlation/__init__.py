"""Errors and performances -> Kendall's τ, its uncertainty, and what a choice by the error costs.

`kendall_tau` compares two lists of numbers; `correlate` does so for a table of trials, within each run and
across layers, methods or ratios, as in Schuurmans, Batselier & Kooij (ICLR 2023). `compare` sets two errors
against each other, and `regret` says how much worse than the best is what an error chooses.
"""

from tdcompress.correlation.bootstrap import Bootstrap
from tdcompress.correlation.compare import Comparison, compare
from tdcompress.correlation.correlate import Correlation, correlate
from tdcompress.correlation.regret import Regret, regret
from tdcompress.correlation.tau import KendallTau, Variant, kendall_tau

__all__ = [
    "Bootstrap",
    "Comparison",
    "Correlation",
    "KendallTau",
    "Regret",
    "Variant",
    "compare",
    "correlate",
    "kendall_tau",
    "regret",
]
