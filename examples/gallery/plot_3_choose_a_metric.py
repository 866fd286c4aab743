"""
Choose a metric
===============

Which error tells, before anything is evaluated, how much a compression will cost? Compress one layer at a time, note
every error and the loss on validation images, and let Kendall's τ rank the errors.
"""

import matplotlib.pyplot as plt
import pandas as pd

import tdcompress as td
from examples.paper.evaluation import evaluate
from examples.trained import trained

model, splits = trained()
images = splits.train.images[:128]

# %%
# Six layers, two methods, three ratios: 36 networks, each with one layer replaced.

layers = [f"layer{group}.{block}.conv2" for group in (1, 2, 3) for block in (0, 2)]
metrics = ["relative_weights", "scaled_weights", "relative_features", "predicted_loss"]
trials = []
for layer in layers:
    for method in ("tucker", "svd"):
        for ratio in (0.5, 0.75, 0.9):
            small = td.decompose(model, layer, method, ratio)
            errors = td.approximation_errors(model, small, metrics, data=images)[layer]
            loss = evaluate(small, splits.validation.images, splits.validation.labels).cross_entropy
            trials.append({"layer": layer, "method": method, "ratio": ratio, **errors, "loss": loss})
table = pd.DataFrame(trials)

# %%
# τ is 1 where an error puts the trials in the order of their losses, and 0 where it says nothing. ``across="layer"``
# asks only whether layers are put in order, at the same method and ratio: which one to compress.

for metric in metrics:
    everything = td.correlate(table, metric, "loss", run=None)
    across = td.correlate(table, metric, "loss", across="layer", run=None)
    print(f"{metric:<18}  all {everything.mean:+.2f}, across layers {across.mean:+.2f}")

# %%
# Seen, with places in the order instead of values: an error with a τ of 1 has all trials on the diagonal, whatever the
# layer.

places = table[[*metrics, "loss"]].rank()
figure, panels = plt.subplots(2, 2, figsize=(7, 6.5), sharex=True, sharey=True, layout="constrained")
for panel, metric in zip(panels.flat, metrics, strict=True):
    for layer, rows in places.groupby(table["layer"]):
        panel.plot(rows[metric], rows["loss"], "o", markersize=5, label=layer)
    panel.set_title(metric)
figure.supxlabel("place by the error")
figure.supylabel("place by the validation cross-entropy")
panels[0, 0].legend(fontsize="small")
plt.show()

# %%
# 36 trials are few. An interval says how few; :func:`tdcompress.compare` asks the same of the difference of two errors.

bootstrap = td.Bootstrap("trials", resamples=200)
print(td.compare(table, "predicted_loss", "relative_weights", "loss", run=None, bootstrap=bootstrap))
