"""Train, decompose, fine-tune, save, load and export, on scikit-learn's digits: `python -m examples.finetune`.

It takes less than a minute on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tdcompress as td


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 1, 8, 8) and labels to train with, and others to test with."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def build() -> nn.Module:
    """The network; this is all that a user of the saved file needs beside it."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, epochs: int) -> None:
    """So many epochs of cross-entropy in batches of 60; the order is drawn from a seed."""
    model.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the model gets right, in evaluation mode."""
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def main(folder: Path, epochs: int = 6) -> dict[str, float]:
    """The whole way; returns the accuracies."""
    train_images, train_labels, *test = digits()
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train(model, optimizer, train_images, train_labels, epochs)
    found = {"dense": accuracy(model, *test)}

    # Decompose: the two wide convolutions, by name. The dense model stays as it is.
    small = td.decompose(model, ["3", "7"], method="tucker", ratio=0.85)
    print(td.report(small, test[0][:64]))
    found["decomposed"] = accuracy(small, *test)

    # Fine-tune with the optimizer that there is: it goes on with the new parameters.
    td.replace_parameters(optimizer, model, small)
    train(small, optimizer, train_images, train_labels, max(1, epochs // 2))
    found["fine-tuned"] = accuracy(small, *test)

    # Save, and load onto a network that has just been built.
    file = folder / "digits.safetensors"
    td.save(small, file)
    loaded = td.load(file, into=build().eval())
    found["loaded"] = accuracy(loaded, *test)

    # Export: every stage is a plain convolution, so there is nothing special to do.
    program = torch.export.export(loaded, (test[0][:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    torch.export.save(program, folder / "digits.pt2")
    predicted = program.module()(test[0]).argmax(1)
    found["exported"] = float((predicted == test[1]).float().mean())
    for state, share in found.items():
        print(f"{state:<11} {share:.3f}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results"), help="where the two files go")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    main(arguments.folder)
