"""
Compress a CNN
==============

A residual network of 20 layers that reads scikit-learn's digits loses three quarters of its weights, by a plan for the
whole model and 256 images without labels. Nothing is trained.
"""

import matplotlib.pyplot as plt
import torch

import tdcompress as td
from examples.paper.evaluation import evaluate
from examples.trained import trained

model, splits = trained()
images = splits.train.images[:256]


def accuracy(network: torch.nn.Module) -> float:
    """The share of the test images that the network gets right."""
    return evaluate(network, splits.test.images, splits.test.labels).accuracy


# %%
# One method and one ratio for every layer is the first thing to try. ``on_refusal="skip"`` leaves dense what cannot
# become so small.

uniform = td.decompose(model, "layer*", "tucker", 0.75, on_refusal="skip")

# %%
# :func:`tdcompress.compress` shares one budget out instead: more for the layers that matter, the method that loses
# least for each, then biases, stages and BatchNorm fitted to what the original computes for the same images.

small = td.compress(model, 0.75, layers="layer*", data=[images])

for name, network in {"dense": model, "uniform Tucker": uniform, "compress": small}.items():
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{name:<14}  {parameters:>7} parameters, accuracy {accuracy(network):.3f}")

# %%
# The report says what became of every layer: its method, its rank, its error, and its parameters before and after.

report = td.report(small)
print(report)

# %%
# Where the parameters went: a layer that few others can make up for keeps a larger share.

kept = {entry.layer: 1 - entry.ratio for entry in report.layers}
methods = {entry.layer: entry.method for entry in report.layers}
colors = {method: f"C{number}" for number, method in enumerate(sorted(set(methods.values())))}
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.barh(list(kept), list(kept.values()), color=[colors[methods[layer]] for layer in kept])
axes.axvline(0.25, color="0.3", linestyle="--", linewidth=1)
axes.invert_yaxis()
axes.set_xlabel("share of the weights kept; dashed: the same for all")
handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
axes.legend(handles, list(colors), title="method")
plt.show()

# %%
# ``td.save(small, "small.safetensors")`` keeps it; :ref:`sphx_glr_gallery_plot_8_export_to_onnx.py` takes it elsewhere.
