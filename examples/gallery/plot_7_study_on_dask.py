"""
A study on Dask
===============

The grid of layers, methods and ratios, measured side by side by Dask's workers, into one file that can be stopped and
gone on with at any time.
"""

import tempfile
from pathlib import Path

import torch
from distributed import Client

import tdcompress as td
from examples.paper.evaluation import evaluate
from examples.trained import trained
from tdcompress.study import Study, plots

model, splits = trained()


def performance(network: torch.nn.Module) -> dict[str, float]:
    """What is noted of each network: any numbers by name."""
    found = evaluate(network, splits.validation.images, splits.validation.labels)
    return {"error": found.error, "cross_entropy": found.cross_entropy}


# %%
# A study is a description. ``version`` tells one ``evaluate`` from another, for functions cannot be hashed.

study = Study(
    model,
    layers=["layer1.*.conv2", "layer2.*.conv2", "layer3.*.conv2"],
    methods=["tucker", "svd"],
    ratios=[0.5, 0.75, 0.9],
    runs=1,
    evaluate=performance,
    data=splits.train.images[:128],
    version="validation part of the digits",
)
print(len(study.trials()), "trials")

# %%
# Any ``concurrent.futures.Executor`` runs it. Here Dask's workers are threads of this process; on a cluster the line is
# ``Client(scheduler_file="scheduler.json")`` or ``Client("tcp://host:8786")``, and nothing else changes.

store = Path(tempfile.mkdtemp()) / "study.sqlite"
with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
    table = study.run(store, client.get_executor(), progress=False)
print(table[["layer", "method", "ratio", "relative_weights", "cross_entropy"]].head())

# %%
# Run again, the same study finds all of it there, and measures nothing.

again = study.run(store, progress=False)
assert again["cross_entropy"].equals(table["cross_entropy"])

# %%
# The errors against the performance, as the paper draws them:

for error in ("relative_weights", "relative_features"):
    print(error, td.correlate(table, error, "cross_entropy", run=None))

baseline = performance(model)["cross_entropy"]
figure = plots.scatter(
    table,
    {"before fine-tuning": "cross_entropy"},
    "relative_weights",
    baseline,
    label="validation cross-entropy",
    scale=1,
)
figure
