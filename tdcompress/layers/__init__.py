"""Factors to layers: convolutions, linear layers and embeddings, as stacks of smaller ones."""

from tdcompress.layers.adapters import LayerKind
from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.blr import BLRConv
from tdcompress.layers.btd import BTDConv
from tdcompress.layers.cp import CPConv
from tdcompress.layers.fisher import FisherFactors
from tdcompress.layers.grouped import GroupedLinear
from tdcompress.layers.ht import HTConv
from tdcompress.layers.kinds import register_layer_kind
from tdcompress.layers.kronecker import KroneckerConv
from tdcompress.layers.moments import InputMoments
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.svd import SVDConv
from tdcompress.layers.tensor_train import TTConv
from tdcompress.layers.tr import TRConv
from tdcompress.layers.transposed import TransposedLinear
from tdcompress.layers.ttm import TTMConv
from tdcompress.layers.tucker import TuckerConv

__all__ = [
    "BLRConv",
    "BTDConv",
    "CPConv",
    "ConvSpec",
    "FactorizedConv",
    "FisherFactors",
    "GroupedLinear",
    "HTConv",
    "InputMoments",
    "KroneckerConv",
    "LayerKind",
    "SVDConv",
    "TRConv",
    "TTConv",
    "TTMConv",
    "TransposedLinear",
    "TuckerConv",
    "register_layer_kind",
]
