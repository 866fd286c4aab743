"""Tensor to factors: pure functions on `torch.Tensor`."""

from tdcompress.decompositions.blr import BLRDecomposition, blr, blr_limit, monarch_reshape
from tdcompress.decompositions.btd import BTDecomposition, BTDOptions, btd, btd_limits
from tdcompress.decompositions.cp import CPDecomposition, cp, cp_limit
from tdcompress.decompositions.hierarchical import (
    HTDecomposition,
    HTOptions,
    hierarchical_tucker,
    hierarchical_tucker_limits,
)
from tdcompress.decompositions.kronecker import KroneckerDecomposition, kronecker, kronecker_limit
from tdcompress.decompositions.options import (
    CPOptions,
    Options,
    Solver,
    SVDOptions,
    TTOptions,
    TuckerOptions,
)
from tdcompress.decompositions.reshape import Reshape, Reshaping, balanced_factors, factorizations
from tdcompress.decompositions.reshaped_options import BLROptions, KroneckerOptions, Shapes, TTMOptions
from tdcompress.decompositions.solution import Decomposition, Solution
from tdcompress.decompositions.svd import SVDecomposition, svd
from tdcompress.decompositions.tensor_ring import TRDecomposition, TROptions, tensor_ring, tensor_ring_limits
from tdcompress.decompositions.tensor_train import TTDecomposition, tensor_train, tensor_train_limits
from tdcompress.decompositions.ttm import TTMDecomposition, ttm, ttm_limits
from tdcompress.decompositions.tucker import TuckerDecomposition, tucker, tucker_limits

__all__ = [
    "BLRDecomposition",
    "BLROptions",
    "BTDOptions",
    "BTDecomposition",
    "CPDecomposition",
    "CPOptions",
    "Decomposition",
    "HTDecomposition",
    "HTOptions",
    "KroneckerDecomposition",
    "KroneckerOptions",
    "Options",
    "Reshape",
    "Reshaping",
    "SVDOptions",
    "SVDecomposition",
    "Shapes",
    "Solution",
    "Solver",
    "TRDecomposition",
    "TROptions",
    "TTDecomposition",
    "TTMDecomposition",
    "TTMOptions",
    "TTOptions",
    "TuckerDecomposition",
    "TuckerOptions",
    "balanced_factors",
    "blr",
    "blr_limit",
    "btd",
    "btd_limits",
    "cp",
    "cp_limit",
    "factorizations",
    "hierarchical_tucker",
    "hierarchical_tucker_limits",
    "kronecker",
    "kronecker_limit",
    "monarch_reshape",
    "svd",
    "tensor_ring",
    "tensor_ring_limits",
    "tensor_train",
    "tensor_train_limits",
    "ttm",
    "ttm_limits",
    "tucker",
    "tucker_limits",
]
