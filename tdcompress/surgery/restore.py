"""restore(): dense layers in the place of factorized ones."""

from __future__ import annotations

from torch import nn

from tdcompress.errors import naming
from tdcompress.layers import FactorizedConv
from tdcompress.layers.kinds import as_dense
from tdcompress.layers.reshapes import Regroup
from tdcompress.surgery.plain import Hooks, Policy, check_forward, check_hooks, check_wrapper
from tdcompress.surgery.selection import LayerSelector, select_factorized
from tdcompress.surgery.swap import Swap, swapped
from tdcompress.surgery.ties import cut_ties, retie


def restore(
    model: nn.Module,
    layer: LayerSelector | None = None,
    *,
    inplace: bool = False,
    hooks: Hooks = "refuse",
) -> nn.Module:
    """Put dense layers back: each factorized layer becomes the plain one that does the same.

    What the decomposition lost stays lost: the dense kernel is the one that the factors stand for.

    Args:
        model: a model with factorized layers. It is left alone unless `inplace`.
        layer: which of them, as for `decompose`; all by default.
        inplace: change `model` itself.
        hooks: what to do with hooks on a factorized layer: `"refuse"` or `"keep"`. Hooks on its stages are refused.

    Returns:
        The model with dense layers.

    Raises:
        CompressionError: there is no such layer, or it carries what a dense one cannot; the model is as it was.

    >>> from tdcompress import decompose
    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    >>> dense = restore(decompose(model, "2", method="cp", rank=5))
    >>> dense[2]
    Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1))
    """
    policy = Policy(hooks=hooks)
    selected = select_factorized(model, layer)
    cut = cut_ties(model, selected)
    swaps: list[Swap] = []
    for name, module in selected:
        with naming(name):
            check_wrapper(model, name)
            if name in cut:
                raise cut[name]
            check_forward(module)
            check_hooks(module, policy)
            for stage_name, stage in module.named_children():
                with naming(stage_name):
                    if isinstance(stage, Regroup):
                        check_hooks(stage, policy)
                    else:
                        as_dense(stage)
            swaps.append((name, module, module.to_conv()))
    retie(swaps)
    every = sum(isinstance(module, FactorizedConv) for module in model.modules())
    # Once all is dense again, nothing was left so.
    return swapped(model, swaps, inplace=inplace, left={} if len(swaps) == every else None)
