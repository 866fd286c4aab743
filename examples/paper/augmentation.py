"""Random crops, flips and mixtures of whole batches, on the device that the images are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """What is drawn for each image; the same seed draws the same for every device.

    Attributes:
        rows: the first row of its crop, (N,).
        columns: the first column, (N,).
        mirrored: whether it is mirrored, (N,).
    """

    rows: Tensor
    columns: Tensor
    mirrored: Tensor

    def take(self, batch: slice) -> Draws:
        """Those of some of the images."""
        return Draws(self.rows[batch], self.columns[batch], self.mirrored[batch])


def draw(count: int, generator: torch.Generator, device: torch.device, *, crop_padding: int, flip: bool) -> Draws:
    """Draw for many images at once: one transfer an epoch, not one a batch.

    Args:
        count: how many images.
        generator: on the CPU.
        device: where the images are.
        crop_padding: crops begin at 0 .. 2 · crop_padding.
        flip: mirror each image with probability one half.
    """
    offsets = torch.randint(2 * crop_padding + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
    return Draws(*(drawn.to(device) for drawn in (*offsets, mirrored)))


def augment(images: Tensor, black: Tensor, draws: Draws, crop_padding: int = 0) -> Tensor:
    """Random crops and flips, each image its own.

    Args:
        images: (N, C, H, W).
        black: the value of a padding pixel in each channel, (C,).
        draws: for these images, made with the same `crop_padding`.
        crop_padding: pixels of padding on each side, of which a crop of H × W is cut out.

    Returns:
        New images, (N, C, H, W).

    Example:
        >>> images = torch.rand(5, 1, 28, 28)
        >>> draws = draw(5, torch.Generator().manual_seed(0), images.device, crop_padding=4, flip=True)
        >>> augment(images, torch.zeros(1), draws, crop_padding=4).shape
        torch.Size([5, 1, 28, 28])
    """
    count, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + draws.rows[:, None]
    columns = torch.arange(width, device=device).expand(count, -1)
    columns = torch.where(draws.mirrored[:, None], columns.flip(1), columns) + draws.columns[:, None]
    if crop_padding:
        black = black[:, None, None]
        images = F.pad(images - black, [crop_padding] * 4) + black
    return images[
        torch.arange(count, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def paste(images: Tensor, generator: torch.Generator) -> Tensor:
    """A square of another image of the batch in every image, at one place for all: CutMix (Yun et al. 2019).

    Which image is given to which, the place and the side, from a quarter to three quarters of the smaller side of an
    image, are drawn. What the labels were is no longer true, so it is for a teacher that is asked again.

    Args:
        images: (N, C, H, W).
        generator: on the CPU.

    Returns:
        New images, (N, C, H, W).

    Example:
        >>> images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
        >>> pasted = paste(images, torch.Generator().manual_seed(0))
        >>> pasted.shape, int((pasted != images).sum(dim=(1, 2, 3)).max()) in (4, 9, 16, 25, 36)
        (torch.Size([3, 1, 8, 8]), True)
    """

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    height, width = images.shape[-2:]
    shortest = min(height, width)
    side = drawn(shortest // 4, 3 * shortest // 4)
    top, left = drawn(0, height - side), drawn(0, width - side)
    square = (..., slice(top, top + side), slice(left, left + side))
    givers = torch.randperm(len(images), generator=generator).to(images.device)
    pasted = images.clone()
    pasted[square] = images[givers][square]
    return pasted
