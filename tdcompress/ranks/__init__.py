"""Shape + budget -> ranks, and what a rank costs in parameters.

A kernel's modes are (out, in, *spatial): in is in_channels / groups, and spatial sizes of 1 are left out,
because no stage of a factorized convolution is spent on them. Kernels come as (groups, *modes): the groups
of one convolution share a rank, and what one rank costs is counted for one group.
"""

from tdcompress.ranks.blr import blr_candidates, blr_curve, blr_parameters, blr_shapes
from tdcompress.ranks.btd import btd_best_ranks, btd_curve, btd_parameters, btd_ranks
from tdcompress.ranks.budget import kept_share, parameter_budget
from tdcompress.ranks.cp import cp_curve, cp_parameters, cp_ranks, cp_rule
from tdcompress.ranks.hierarchical import ht_curve, ht_parameters, ht_ranks
from tdcompress.ranks.kronecker import (
    kronecker_candidates,
    kronecker_curve,
    kronecker_multiply_adds,
    kronecker_parameters,
    kronecker_shapes,
)
from tdcompress.ranks.reshaped import ReshapedRank
from tdcompress.ranks.svd import svd_curve, svd_parameters, svd_ranks
from tdcompress.ranks.tensor_ring import tr_curve, tr_parameters, tr_ranks, train_ranks
from tdcompress.ranks.tensor_train import tt_curve, tt_ranks, tt_rule
from tdcompress.ranks.train_chain import tt_parameters
from tdcompress.ranks.ttm import ttm_curve, ttm_ranks
from tdcompress.ranks.ttm_costs import ttm_multiply_adds, ttm_parameters
from tdcompress.ranks.tucker import tucker_curve, tucker_parameters, tucker_ranks, tucker_rule

__all__ = [
    "ReshapedRank",
    "blr_candidates",
    "blr_curve",
    "blr_parameters",
    "blr_shapes",
    "btd_best_ranks",
    "btd_curve",
    "btd_parameters",
    "btd_ranks",
    "cp_curve",
    "cp_parameters",
    "cp_ranks",
    "cp_rule",
    "ht_curve",
    "ht_parameters",
    "ht_ranks",
    "kept_share",
    "kronecker_candidates",
    "kronecker_curve",
    "kronecker_multiply_adds",
    "kronecker_parameters",
    "kronecker_shapes",
    "parameter_budget",
    "svd_curve",
    "svd_parameters",
    "svd_ranks",
    "tr_curve",
    "tr_parameters",
    "tr_ranks",
    "train_ranks",
    "tt_curve",
    "tt_parameters",
    "tt_ranks",
    "tt_rule",
    "ttm_curve",
    "ttm_multiply_adds",
    "ttm_parameters",
    "ttm_ranks",
    "tucker_curve",
    "tucker_parameters",
    "tucker_ranks",
    "tucker_rule",
]
