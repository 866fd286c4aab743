"""The data sets of the study, as standardised tensors: digits, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.paper.download import cache_folder, download
from examples.paper.formats import DataError, read_cifar10, read_idx
from tdcompress.errors import CompressionError

__all__ = ["DataError", "Split", "Splits", "cifar10", "digits", "fashion_mnist", "stratified_split"]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # the package dataset-fashion-mnist
FASHION_MNIST_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/"
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: (N, C, H, W), float32, standardised.
        labels: (N,), int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, indices: Tensor | slice) -> Split:
        """The images and labels at `indices`, as in `split.take(slice(2000))`."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set in its three disjoint parts, standardised by the training part's mean and deviation.

    Attributes:
        name: the data set's name.
        train: what weights are fitted to.
        validation: what epochs are chosen by.
        test: what results are reported on.
        mean: (C,), mean of each channel over the training part, of pixel values in [0, 1].
        std: (C,), standard deviation of each channel, likewise.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    mean: Tensor
    std: Tensor

    @property
    def black(self) -> Tensor:
        """What a pixel of value 0 is after standardisation, (C,): what cropping pads images with."""
        return -self.mean / self.std

    def to(self, device: torch.device | str) -> Splits:
        """The same data on `device`."""
        train, validation, test = (part.to(device) for part in (self.train, self.validation, self.test))
        return Splits(self.name, train, validation, test, self.mean.to(device), self.std.to(device))


def stratified_split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divides indices in two so that every class has its share of both parts.

    Shares are rounded by largest remainders, so the second part has exactly `size` elements and no class is
    off its share by one or more.

    Args:
        labels: (N,), classes.
        size: number of elements of the second part.
        seed: the same seed gives the same parts.

    Returns:
        Indices of the first part (N - size,) and of the second (size,), each ascending.

    Raises:
        CompressionError: `size` is negative or leaves nothing for the first part.

    Example:
        >>> rest, chosen = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), size=3, seed=0)
        >>> torch.tensor([0, 0, 0, 0, 1, 1])[chosen]
        tensor([0, 0, 1])
    """
    if not 0 <= size < len(labels):
        raise CompressionError(f"cannot set aside {size} of {len(labels)} images; choose 0 .. {len(labels) - 1}")
    classes, counts = labels.unique(return_counts=True)
    shares = counts.double() * size / len(labels)
    quotas = shares.floor().long()
    largest_remainders = (quotas - shares).argsort(stable=True)[: size - int(quotas.sum())]
    quotas[largest_remainders] += 1
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in zip(classes, quotas, strict=True):
        members = (labels == label).nonzero().flatten()
        chosen[members[torch.randperm(len(members), generator=generator)[:quota]]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def digits(seed: int = 0) -> Splits:
    """The 1797 digits of 8×8 pixels that come with scikit-learn, in three stratified parts of 599.

    Args:
        seed: decides which image goes into which part.

    Example:
        >>> splits = digits()
        >>> splits.train.images.shape, len(splits.validation), len(splits.test)
        (torch.Size([599, 1, 8, 8]), 599, 599)
    """
    from sklearn.datasets import load_digits  # slow to import, and only this data set needs it

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    rest, test = stratified_split(labels, len(labels) // 3, seed)
    part = stratified_split(labels[rest], len(labels) // 3, seed)
    train, validation = (Split(images[rest[half]], labels[rest[half]]) for half in part)
    return _standardised("digits", train, validation, Split(images[test], labels[test]))


def fashion_mnist(
    folder: str | Path | None = None,
    *,
    validation_size: int = 5000,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Splits:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 28×28 grey images, 55 000 / 5000 / 10 000.

    Args:
        folder: where the four `*-ubyte.gz` files are. Without it, Debian's folder is used where its package
            `dataset-fashion-mnist` is installed; else the files are downloaded once, with their checksums
            compared.
        validation_size: how many of the training images are for validation, stratified.
        seed: decides which.
        cache: folder for downloaded files; by default `tdcompress` in the user's cache folder.

    Raises:
        DataError: a file is missing, corrupt, or cannot be downloaded.
    """
    if folder is None and DEBIAN_FASHION_MNIST.is_dir():
        folder = DEBIAN_FASHION_MNIST
    if folder is None:
        folder = Path(cache or cache_folder()) / "fashion-mnist"
        for file, md5 in FASHION_MNIST_MD5.items():
            download(FASHION_MNIST_ADDRESS + file, folder / file, md5)
    train, test = (_idx_split(Path(folder), prefix) for prefix in ("train", "t10k"))
    return _with_validation("Fashion-MNIST", train, test, validation_size, seed)


def _idx_split(folder: Path, prefix: str) -> Split:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    where = f"{folder}: {prefix}-*-ubyte.gz"
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{where}: images must be (N, 28, 28) and labels (N,), found {images.shape} and {labels.shape}; "
            "get both files again from one source"
        )
    if labels.size and labels.max() > 9:
        raise DataError(f"{where}: labels must be 0 .. 9, found {labels.max()}; get both files again")
    return _as_split(images[:, None], labels)


def cifar10(
    path: str | Path | None = None,
    *,
    validation_size: int = 5000,
    seed: int = 0,
    cache: str | Path | None = None,
    images_per_file: int | None = 10_000,
) -> Splits:
    """CIFAR-10 (Krizhevsky 2009): 32×32 colour images, 45 000 / 5000 / 10 000.

    Args:
        path: the folder or the `.tar.gz` archive, in the Python or the binary format. Without it, the binary
            archive is downloaded once, with its checksum compared.
        validation_size: how many of the training images are for validation, stratified.
        seed: decides which.
        cache: folder for the downloaded archive; by default `tdcompress` in the user's cache folder.
        images_per_file: what each of the six files must hold, so that a short one is noticed; None for any
            number.

    Raises:
        DataError: a file is missing, corrupt, or cannot be downloaded.
    """
    if path is None:
        path = Path(cache or cache_folder()) / CIFAR10_ARCHIVE
        download(CIFAR10_ADDRESS + CIFAR10_ARCHIVE, path, CIFAR10_MD5)
    files = read_cifar10(Path(path))
    for name, (_, labels) in files.items():
        if images_per_file not in (None, len(labels)):
            raise DataError(
                f"{path}: {name} holds {len(labels)} images, not {images_per_file}; get it again from its "
                "source, or pass images_per_file=None if it is meant to be so"
            )
    test = _as_split(*files.pop("test_batch"))
    images, labels = (np.concatenate(parts) for parts in zip(*files.values(), strict=True))
    return _with_validation("CIFAR-10", _as_split(images, labels), test, validation_size, seed)


def _as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """Bytes (N, C, H, W) and (N,) as float32 in [0, 1] and int64."""
    return Split(torch.tensor(images).float().div_(255), torch.tensor(labels).long())


def _with_validation(name: str, train: Split, test: Split, validation_size: int, seed: int) -> Splits:
    rest, validation = stratified_split(train.labels, validation_size, seed)
    return _standardised(name, train.take(rest), train.take(validation), test)


def _standardised(name: str, train: Split, validation: Split, test: Split) -> Splits:
    std, mean = torch.std_mean(train.images, dim=(0, 2, 3), correction=0)

    def standard(part: Split) -> Split:
        return Split((part.images - mean[:, None, None]) / std[:, None, None], part.labels)

    return Splits(name, standard(train), standard(validation), standard(test), mean, std)
