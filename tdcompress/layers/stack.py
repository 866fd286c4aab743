"""Stacks with modules between the stages that rearrange: what they stand for, and those that see a grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tdcompress.decompositions import Reshape
from tdcompress.layers.reshapes import Regrouping
from tdcompress.layers.spec import ConvSpec
from tdcompress.shapes import Rank


def dense_kernels(
    spec: ConvSpec, parts: Iterable[ConvSpec | Regrouping], weights: Iterable[tuple[ConvSpec, Tensor]]
) -> Tensor:
    """What a stack stands for: what it makes of a one in every input channel of a group; differentiable.

    Args:
        spec: the layer.
        parts: what the stack is made of, in order.
        weights: of the stages among them, each with the arguments of the module that has it.

    Returns:
        (groups, out / groups, in / groups, positions), the positions of the first stage slowest.
    """
    groups, inputs = spec.groups, spec.in_channels // spec.groups
    stages = [(part, part.to_kernels(weight).reshape(part.groups, *_matrices(part))) for part, weight in weights]
    waiting, made = iter(stages), None  # (channels, in / groups, positions), and a last axis for what is folded
    for planned in parts:
        if made is None and isinstance(planned, ConvSpec) and planned.groups == groups:
            made = next(waiting)[1].flatten(0, 1)  # as they are: the inputs of a layer may be many
            continue
        if made is None:
            like = stages[0][1]
            made = torch.eye(inputs, dtype=like.dtype, device=like.device).repeat(groups, 1)[..., None]
        if isinstance(planned, Regrouping):
            features = made.permute(1, 2, 3, 0) if planned.arrive else made.permute(1, 2, 0)
            features = planned.of_features(features)
            made = features.permute(3, 0, 1, 2) if planned.leave else features.permute(2, 0, 1)
        else:
            stage, kernels = next(waiting)
            # A stage with more groups than the layer, depthwise at the most, keeps blocks of channels apart.
            blocks = made.reshape(stage.groups, -1, *made.shape[1:])
            made = torch.einsum("gock,gcip...->goipk...", kernels, blocks).flatten(0, 1).flatten(2, 3)
    assert made is not None
    return made.reshape(groups, -1, *made.shape[1:])


def _matrices(part: ConvSpec) -> tuple[int, int, int]:
    """The shape of one group's kernel with all positions in one mode."""
    out, inner, *size = part.kernel_shape
    return out, inner, math.prod(size)


class Stack:
    """Stages and what rearranges between them, told by the names of the axes that the channels have.

    Args:
        spec: the layer.
        sizes: of every axis, by name.
        channels: the axes of what the layer reads.
    """

    def __init__(self, spec: ConvSpec, sizes: dict[str, int], channels: Sequence[str]) -> None:
        self.spec, self.sizes = spec, sizes
        self.folded: list[str] = []
        self.channels = list(channels)
        self.stages: dict[str, ConvSpec | Regrouping] = {}

    def regroup(self, name: str, channels: Sequence[str], folded: Sequence[str] = (), *, always: bool = False) -> None:
        """Have these axes in the channels and those folded; no module where they are already, unless always."""
        before, after = [*self.folded, *self.channels], [*folded, *channels]
        if always or (before, len(self.folded)) != (after, len(folded)):
            grid, order = tuple(self.sizes[axis] for axis in before), tuple(before.index(axis) for axis in after)
            spatial = len(self.spec.kernel_size) or None
            self.stages[name] = Regrouping(grid, order, len(self.folded), len(folded), spatial)
        self.folded, self.channels = list(folded), list(channels)

    def multiply(self, name: str, channels: Sequence[str], groups: Sequence[str]) -> None:
        """A stage from the channels that there are to others, without a view across some axes."""
        first = not any(isinstance(one, ConvSpec) for one in self.stages.values())
        sizes = [math.prod(self.sizes[axis] for axis in axes) for axes in (self.channels, channels, groups)]
        axes = self.spec.pointwise_axes if first else ()
        self.stages[name] = self.spec.stage(sizes[0], sizes[1], axes, groups=sizes[2])
        self.channels = list(channels)


def chain_stages(spec: ConvSpec, reshape: Reshape, rank: Rank, *, from_last: bool) -> dict[str, ConvSpec | Regrouping]:
    """The stages of a chain of cores, of which each multiplies along its own axis of the grid."""
    cores = range(reshape.cores)
    rows, columns, bonds = ([f"{what}{core}" for core in cores] for what in ("row", "column", "bond"))
    sizes = dict(zip([*rows, *columns, *bonds], [*reshape.rows, *reshape.columns, *rank, 1], strict=True))
    sizes |= {"group": spec.groups}
    arriving = columns[::-1] if reshape.strided_columns else columns
    leaving = rows[::-1] if reshape.strided_rows else rows
    stack = Stack(spec, sizes, ["group", *arriving])
    for core in reversed(cores) if from_last else cores:
        before, after = bonds[core - 1 : core] if core else [], bonds[core : core + 1] if core < cores[-1] else []
        waiting = columns[:core] if from_last else columns[core + 1 :]
        done = rows[core + 1 :] if from_last else rows[:core]
        read = [columns[core], *after] if from_last else [*before, columns[core]]
        written = [*before, rows[core]] if from_last else [rows[core], *after]
        stack.regroup(f"to{core + 1}", ["group", *read], [*waiting, *done])
        stack.multiply(f"core{core + 1}", ["group", *written], ["group"])
    stack.regroup("output", ["group", *leaving], always=True)
    return stack.stages


def chain_weights(cores: Sequence[Tensor], *, from_last: bool) -> list[Tensor]:
    """The cores, (bond, row, column, bond), as weights of the stages of `chain_stages`, (out, in)."""
    if from_last:
        return [core.flatten(2).flatten(0, 1) for core in reversed(cores)]
    return [core.permute(1, 3, 0, 2).flatten(2).flatten(0, 1) for core in cores]


def chain_cores(weights: Sequence[Tensor], reshape: Reshape, rank: Rank, *, from_last: bool) -> tuple[Tensor, ...]:
    """The cores that `chain_weights` was given, from what it gave."""
    bonds = (1, *rank, 1)
    cores = []
    for core, weight in enumerate(reversed(weights) if from_last else weights):
        out, inner, before, after = reshape.rows[core], reshape.columns[core], bonds[core], bonds[core + 1]
        if from_last:
            cores.append(weight.reshape(before, out, inner, after))
        else:
            cores.append(weight.reshape(out, after, before, inner).permute(2, 0, 3, 1))
    return tuple(cores)
