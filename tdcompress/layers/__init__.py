"""Factors to layers: convolutions, linear layers and embeddings, as stacks of smaller ones."""

from tdcompress.layers.base import FactorizedConv
from tdcompress.layers.btd import BTDConv
from tdcompress.layers.cp import CPConv
from tdcompress.layers.kinds import LayerKind, register_layer_kind
from tdcompress.layers.moments import InputMoments
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.svd import SVDConv
from tdcompress.layers.tensor_train import TTConv
from tdcompress.layers.transposed import TransposedLinear
from tdcompress.layers.tucker import TuckerConv

__all__ = [
    "BTDConv",
    "CPConv",
    "ConvSpec",
    "FactorizedConv",
    "InputMoments",
    "LayerKind",
    "SVDConv",
    "TTConv",
    "TransposedLinear",
    "TuckerConv",
    "register_layer_kind",
]
