"""
Compress a transformer
======================

A small vision transformer of ``transformers``, built from a configuration and trained here for some seconds on
scikit-learn's digits. Its linear layers become pairs of narrower ones, or products over a grid.
"""

import matplotlib.pyplot as plt
import torch
from transformers import ViTConfig, ViTForImageClassification

import tdcompress as td
from examples.paper.data import digits

splits = digits()
config = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    hidden_size=48,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_labels=10,
)
torch.manual_seed(0)
model = ViTForImageClassification(config)

# %%
# Train it: 30 passes over 599 images.

optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
epochs, batches = 30, len(splits.train.images.split(64))
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * batches)
for _ in range(epochs):
    for batch in torch.randperm(len(splits.train)).split(64):
        part = splits.train.take(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(part.images).logits, part.labels).backward()
        optimizer.step()
        schedule.step()
model.eval()


@torch.no_grad()
def accuracy(network: torch.nn.Module) -> float:
    """The share of the test images that the network gets right."""
    predicted = network(splits.test.images).logits.argmax(1)
    return float((predicted == splits.test.labels).float().mean())


print(f"dense: {sum(p.numel() for p in model.parameters())} parameters, accuracy {accuracy(model):.3f}")

# %%
# The blocks are named by a glob; the patch embedding and the head stay. Three methods take matrices: the SVD, sums of
# Kronecker products and blocks of low rank.

ratios = [0.3, 0.5, 0.7, 0.9]
blocks = "vit.*layer*"
found = {
    method: [accuracy(td.decompose(model, blocks, method, ratio)) for ratio in ratios]
    for method in ("svd", "kronecker", "blr")
}

# %%
# With inputs, :func:`tdcompress.compress` shares the budget out among the layers and fits what is left to the original:

images = [splits.train.images[:256]]
found["compress"] = []
for ratio in ratios:
    small = td.compress(model, ratio, layers=blocks, data=images)
    found["compress"].append(accuracy(small))

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in found.items():
    axes.plot(ratios, values, "o-", label=name)
axes.axhline(accuracy(model), color="0.3", linestyle="--", linewidth=1, label="dense")
axes.set_xlabel("share of the blocks' weights removed")
axes.set_ylabel("test accuracy")
axes.legend()
plt.show()

# %%
# Each layer of the last one is an ``nn.Sequential`` of plain linear layers:

print(next(layer for layer in small.modules() if isinstance(layer, td.FactorizedConv)))
