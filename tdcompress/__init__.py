"""Compress PyTorch networks by tensor decomposition, and know what it costs before evaluating.

>>> import torch, tdcompress as td
>>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3))
>>> small = td.decompose(model, "2", method="tucker", ratio=0.9)
>>> sorted(td.approximation_errors(model, small)["2"])
['absolute_weights', 'relative_weights', 'scaled_weights']
"""

from tdcompress.calibration import DistillationOptions, DistillationResult, calibrate, distill, distillation_loss
from tdcompress.compression import compress
from tdcompress.correlation import (
    Bootstrap,
    Comparison,
    Correlation,
    KendallTau,
    Regret,
    compare,
    correlate,
    kendall_tau,
    regret,
)
from tdcompress.decompositions import (
    BLROptions,
    BTDOptions,
    CPOptions,
    HTOptions,
    KroneckerOptions,
    Reshape,
    SVDOptions,
    TROptions,
    TTMOptions,
    TTOptions,
    TuckerOptions,
)
from tdcompress.errors import CompressionError
from tdcompress.fisher import fisher_factors
from tdcompress.gathering import input_moments
from tdcompress.interop import from_factorized_tensor, from_tltorch, to_factorized_tensor, to_tltorch
from tdcompress.layers import (
    BLRConv,
    BTDConv,
    ConvSpec,
    CPConv,
    FactorizedConv,
    FisherFactors,
    GroupedLinear,
    HTConv,
    InputMoments,
    KroneckerConv,
    LayerKind,
    SVDConv,
    TransposedLinear,
    TRConv,
    TTConv,
    TTMConv,
    TuckerConv,
    register_layer_kind,
)
from tdcompress.methods import register_method
from tdcompress.metrics import approximation_errors, register_metric
from tdcompress.planning import Plan, plan
from tdcompress.report import Report, report
from tdcompress.serialization import load, save
from tdcompress.surgery import decompose, refusals, replace_parameters, restore

__version__ = "0.1.0"

__all__ = [
    "BLRConv",
    "BLROptions",
    "BTDConv",
    "BTDOptions",
    "Bootstrap",
    "CPConv",
    "CPOptions",
    "Comparison",
    "CompressionError",
    "ConvSpec",
    "Correlation",
    "DistillationOptions",
    "DistillationResult",
    "FactorizedConv",
    "FisherFactors",
    "GroupedLinear",
    "HTConv",
    "HTOptions",
    "InputMoments",
    "KendallTau",
    "KroneckerConv",
    "KroneckerOptions",
    "LayerKind",
    "Plan",
    "Regret",
    "Report",
    "Reshape",
    "SVDConv",
    "SVDOptions",
    "TRConv",
    "TROptions",
    "TTConv",
    "TTMConv",
    "TTMOptions",
    "TTOptions",
    "TransposedLinear",
    "TuckerConv",
    "TuckerOptions",
    "approximation_errors",
    "calibrate",
    "compare",
    "compress",
    "correlate",
    "decompose",
    "distill",
    "distillation_loss",
    "fisher_factors",
    "from_factorized_tensor",
    "from_tltorch",
    "input_moments",
    "kendall_tau",
    "load",
    "plan",
    "refusals",
    "register_layer_kind",
    "register_method",
    "register_metric",
    "regret",
    "replace_parameters",
    "report",
    "restore",
    "save",
    "to_factorized_tensor",
    "to_tltorch",
]
