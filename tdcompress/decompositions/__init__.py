"""Tensor to factors: pure functions on `torch.Tensor`."""

from tdcompress.decompositions.cp import CPDecomposition, cp, cp_limit
from tdcompress.decompositions.options import CPOptions, Options, Solver, SVDOptions, TTOptions, TuckerOptions
from tdcompress.decompositions.solution import Solution
from tdcompress.decompositions.svd import SVDecomposition, svd
from tdcompress.decompositions.tensor_train import TTDecomposition, tensor_train, tensor_train_limits
from tdcompress.decompositions.tucker import TuckerDecomposition, tucker, tucker_limits

__all__ = [
    "CPDecomposition",
    "CPOptions",
    "Options",
    "SVDOptions",
    "SVDecomposition",
    "Solution",
    "Solver",
    "TTDecomposition",
    "TTOptions",
    "TuckerDecomposition",
    "TuckerOptions",
    "cp",
    "cp_limit",
    "svd",
    "tensor_train",
    "tensor_train_limits",
    "tucker",
    "tucker_limits",
]
