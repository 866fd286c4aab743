"""
Export to ONNX and run it
=========================

A factorized layer is made of plain convolutions, so exporters find nothing special. Compress, export, and compare what
onnxruntime says with what PyTorch says.
"""

import logging
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import torch

import tdcompress as td
from examples.trained import trained

model, splits = trained()
images = splits.test.images
small = td.decompose(model, "layer3*", "tucker", 0.6, on_refusal="skip")

# %%
# The batch size is left open: ``dynamic_shapes`` names it.

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that are not needed here
file = Path(tempfile.mkdtemp()) / "small.onnx"
batch = torch.export.Dim("batch", min=2)
torch.onnx.export(
    small, (images[:2],), file, dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False
)
dense_bytes = 4 * sum(p.numel() for p in model.parameters())
print(
    f"{file.stat().st_size / 1e3:.0f} kB on disk; the weights of the dense network alone are {dense_bytes / 1e3:.0f} kB"
)

# %%
# In onnxruntime, on all test images:

session = onnxruntime.InferenceSession(file)
(predicted,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
with torch.no_grad():
    expected = small(images).numpy()
print("largest difference:", np.abs(predicted - expected).max())
print("same answers:", bool((predicted.argmax(1) == expected.argmax(1)).all()))

# %%
# What the graph consists of: more convolutions than the network had, each of them smaller.


def sizes(shapes: Iterable[Sequence[int]]) -> list[int]:
    """The numbers of weights of all convolutions, the largest first."""
    return sorted((math.prod(shape) for shape in shapes if len(shape) == 4), reverse=True)


graph = onnx.load(file).graph
found = {
    "dense": sizes(p.shape for p in model.parameters()),
    "small": sizes(tensor.dims for tensor in graph.initializer),
}
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, values in found.items():
    axes.step(range(len(values)), values, where="mid", label=f"{name}: {len(values)} convolutions")
axes.set_xlabel("convolutions, the largest first")
axes.set_ylabel("weights")
axes.set_yscale("log")
axes.legend()
plt.show()
