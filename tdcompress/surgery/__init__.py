"""Model + layer names -> model with those layers factorized, and back."""

from tdcompress.surgery.decompose import decompose, refusals
from tdcompress.surgery.optimizers import replace_parameters
from tdcompress.surgery.restore import restore
from tdcompress.surgery.selection import LayerSelector, select_layers

__all__ = ["LayerSelector", "decompose", "refusals", "replace_parameters", "restore", "select_layers"]
