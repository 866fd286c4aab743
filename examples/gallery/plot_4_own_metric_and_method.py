"""
A metric and a method of your own
=================================

Both are kept in registries that are open. A metric is a function; a method is a class with six small methods, and gets
ratios, groups, strides, saving, planning and the report for it.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch import nn

import tdcompress as td
from examples.trained import trained_network
from tdcompress.decompositions import tucker, tucker_limits
from tdcompress.methods import METHODS
from tdcompress.metrics import METRICS

model = trained_network("garipov-fmnist")

# %%
# A metric on weights gets the two dense kernels, (out, in, height, width). This one looks at the output channel that
# fares worst.


@td.register_metric("worst_channel", on="weights")
def worst_channel(original: torch.Tensor, approximation: torch.Tensor) -> torch.Tensor:
    """The largest relative error of one output channel."""
    return ((original - approximation).flatten(1).norm(dim=1) / original.flatten(1).norm(dim=1)).max()


# %%
# A method says what a rank costs, which ranks a budget allows, how the factors are found, and of which layers the stack
# consists. This one splits the output channels off: the whole kernel to a few channels, then 1×1. :doc:`/extending`
# explains each of them.


@td.register_method("output-svd")
class OutputSVDConv(td.FactorizedConv):
    """The whole kernel to few channels, then 1×1 to all of them."""

    options = td.TuckerOptions

    @staticmethod
    def full_rank(modes):
        return tucker_limits(modes, (0,))

    @staticmethod
    def parameters_at(modes, rank):
        return rank[0] * (modes[0] + math.prod(modes[1:]))

    @staticmethod
    def choose_ranks(kernels, budget, options):
        modes = kernels.shape[1:]
        cost = modes[0] + math.prod(modes[1:])
        rank = min(budget // cost, *tucker_limits(modes, (0,)))
        return [(rank,)] if rank else []

    @staticmethod
    def solve(kernel, rank, options, generator):
        return tucker(kernel, rank, modes=(0,), solver=options)

    @staticmethod
    def stages(spec, rank, axes):
        channels = spec.groups * rank[0]
        axes = range(len(spec.kernel_size))
        return {
            "core": spec.stage(spec.in_channels, channels, axes, groups=spec.groups),
            "output": spec.stage(channels, spec.out_channels, (), groups=spec.groups),
        }

    @staticmethod
    def stage_weights(factors):
        return [factors.core, factors.factors[0]]


print(td.decompose(nn.Conv2d(16, 32, 3, stride=2, groups=2), "", "output-svd", ratio=0.5))

# %%
# From here on both work wherever a name does:

ratios = [0.5, 0.6, 0.7, 0.8, 0.9]
figure, panels = plt.subplots(1, 2, figsize=(8, 3.5), sharey=True, layout="constrained")
for method in ("output-svd", "svd", "tucker"):
    smaller = [td.decompose(model, "conv4", method, ratio) for ratio in ratios]
    errors = [td.approximation_errors(model, small)["conv4"] for small in smaller]
    for panel, metric in zip(panels, ("relative_weights", "worst_channel"), strict=True):
        panel.plot(ratios, [error[metric] for error in errors], "o-", label=method)
        panel.set_title(metric)
        panel.set_xlabel("share of conv4 removed")
panels[0].legend()
plt.show()

# %%
# Registries are dicts; taken out, a name is free again.

del METRICS["worst_channel"], METHODS["output-svd"]
