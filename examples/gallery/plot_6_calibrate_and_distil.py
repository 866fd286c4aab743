"""
Calibrate and distil
====================

A compressed network is off where nothing was fitted: means have moved, and every layer gets inputs that it never saw.
Unlabelled images repair much of it: layer by layer in closed form, then all parameters at once by what the original
says.
"""

import matplotlib.pyplot as plt

import tdcompress as td
from examples.paper.evaluation import evaluate
from examples.trained import trained

model, splits = trained()
images = [splits.train.images[:256]]


def accuracy(network) -> float:
    """The share of the test images that the network gets right."""
    return evaluate(network, splits.test.images, splits.test.labels).accuracy


# %%
# Tucker at the same ratio in every block, three times: as decomposed; with BatchNorm's statistics moved and biases
# fitted to the original's features; with all stages fitted.

ratios = [0.5, 0.7, 0.9]
found = {"as decomposed": [], "bias": [], "all": []}
for ratio in ratios:
    small = td.decompose(model, "layer*", "tucker", ratio, on_refusal="skip")
    found["as decomposed"].append(accuracy(small))
    for fit in ("bias", "all"):
        found[fit].append(accuracy(td.calibrate(small, images, model, fit=fit)))

for name, values in found.items():
    print(f"{name:<14}", "  ".join(f"{value:.3f}" for value in values))

# %%
# Biases alone repair little where nine tenths are removed; all stages, one layer after the other, nearly everything.
# :func:`tdcompress.distill` goes on from such a fit: gradient steps on the difference of the outputs, with a part of
# the images held out to tell which pass came nearest to the original.

result = td.distill(small, images, model, options=td.DistillationOptions(passes=20))
print(result)
print(f"{accuracy(result.model):.3f}")

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in found.items():
    axes.plot(ratios, values, "o-", label=name)
axes.plot(ratios[-1], accuracy(result.model), "r*", markersize=12, label="all, then distilled")
axes.axhline(accuracy(model), color="0.3", linestyle="--", linewidth=1, label="dense")
axes.set_xlabel("share of each layer's weights removed")
axes.set_ylabel("test accuracy")
axes.legend()
plt.show()
