"""Block low rank: two grouped stages with a shuffle between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tdcompress.decompositions import BLRDecomposition, BLROptions, Reshape, blr, blr_limit, monarch_reshape
from tdcompress.decompositions.reshaped_options import Shapes
from tdcompress.layers.grid import as_reshape_of, columns_of, reshape_of
from tdcompress.layers.reshaped import ReshapedConv
from tdcompress.layers.reshapes import Regrouping
from tdcompress.layers.spec import ConvSpec
from tdcompress.layers.stack import Stack
from tdcompress.layers.whitening import divided, moment_root
from tdcompress.ranks import ReshapedRank, blr_candidates, blr_parameters, blr_shapes
from tdcompress.ranks.reshaped import Spectra
from tdcompress.shapes import Axes, Rank

_RIDGE = 1e-6  # of the mean moment, of a group of columns that is never seen


class BLRConv(ReshapedConv):
    """A linear layer or a 1×1 convolution whose weight is cut into blocks of rank `rank`.

    The first stage has a group for every group of columns, the second one for every group of rows. At rank 1 with
    balanced blocks they are Monarch matrices.

    >>> layer = BLRConv.from_conv(torch.nn.Linear(24, 40), rank=2)
    >>> [tuple(stage.weight.shape) for stage in layer.weighted], layer.axes
    ([(40, 6), (40, 8)], ((5, 8), (4, 6), (1, 0)))
    >>> layer(torch.zeros(2, 24)).shape
    torch.Size([2, 40])
    """

    method = "blr"
    options = BLROptions

    @property
    def rank(self) -> int:
        """The rank of every block."""
        return self.ranks[0]

    @classmethod
    def given(cls, reshape: Shapes, shape: tuple[int, int]) -> Reshape:
        """Balanced is as Monarch has it."""
        return monarch_reshape(*shape) if reshape == "balanced" else super().given(reshape, shape)

    @staticmethod
    def full_rank(modes: Sequence[int]) -> Rank:
        """One entry: the smaller side of a block."""
        return (blr_limit(reshape_of(modes)),)

    @staticmethod
    def parameters_at(modes: Sequence[int], rank: Rank) -> int:
        """`rank` times both sides of all blocks."""
        return blr_parameters(reshape_of(modes), rank)

    @staticmethod
    def best_shapes(
        matrices: Tensor, budgets: Sequence[int], options: BLROptions, count: int = 1
    ) -> list[list[ReshapedRank]]:
        """Their loss is exact."""
        return blr_candidates(matrices, budgets, options.reshape, count=count)

    @staticmethod
    def least_parameters(shape: tuple[int, int], options: BLROptions) -> int | None:
        """Both sides of all blocks at rank one."""
        return min((blr_parameters(one, (1,)) for one in blr_shapes(shape, options.reshape)), default=None)

    @staticmethod
    def foreseen(spectra: Spectra, reshape: Reshape, rank: Rank) -> float:
        """The tails of the singular values of all blocks."""
        return float(spectra.blocks(reshape)[rank[0]])

    @staticmethod
    def solve(kernel: Tensor, rank: Rank, options: BLROptions, generator: torch.Generator) -> BLRDecomposition:
        """The best blocks there are."""
        shape = reshape_of(kernel.shape)
        return blr(shape.to_matrix(kernel), rank[0], shape, solver=options)

    @staticmethod
    def column_roots(moment: Tensor, reshape: Reshape) -> list[Tensor]:
        """One root, (column blocks, columns of a block, columns of a block): no block sees another's columns."""
        order = columns_of(reshape, moment.device)
        blocks, size = reshape.columns
        grid = moment[order][:, order].reshape(blocks, size, blocks, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        means = grid.diagonal(dim1=1, dim2=2).mean(1)  # how much of all that is seen a block of columns sees
        shares = torch.where(means.mean() > 0, means / means.mean(), 1.0).clamp(min=_RIDGE)
        return [moment_root(grid) * shares.sqrt()[:, None, None]]

    @staticmethod
    def whitened(kernel: Tensor, roots: Sequence[Tensor]) -> Tensor:
        """The columns of every block times the root of their own moment."""
        return torch.einsum("aibj,ijk->aibk", kernel, roots[0].to(kernel))

    @staticmethod
    def unwhitened(decomposition: BLRDecomposition, roots: Sequence[Tensor]) -> BLRDecomposition:
        """The root taken out of the right factors."""
        right = decomposition.right.double().transpose(0, 1)  # (column blocks, row blocks, rank, columns of a block)
        unwhitened = divided(right.flatten(1, 2), roots[0]).reshape(right.shape).transpose(0, 1)
        return replace(decomposition, right=unwhitened.to(decomposition.right.dtype))

    @staticmethod
    def stages(spec: ConvSpec, rank: Rank, axes: Axes) -> Mapping[str, ConvSpec | Regrouping]:
        """Grouped by columns to the rank, shuffled, and grouped by rows from it."""
        reshape = as_reshape_of(axes)
        (row_blocks, rows), (column_blocks, columns) = reshape.rows, reshape.columns
        sizes = {"group": spec.groups, "row block": row_blocks, "row": rows, "column block": column_blocks}
        sizes |= {"column": columns, "rank": rank[0]}
        inputs = ["column", "column block"] if reshape.strided_columns else ["column block", "column"]
        stack = Stack(spec, sizes, ["group", *inputs])
        stack.regroup("to_columns", ["group", "column block", "column"])
        stack.multiply("columns", ["group", "column block", "row block", "rank"], ["group", "column block"])
        stack.regroup("to_rows", ["group", "row block", "column block", "rank"])
        stack.multiply("rows", ["group", "row block", "row"], ["group", "row block"])
        outputs = ["row", "row block"] if reshape.strided_rows else ["row block", "row"]
        stack.regroup("output", ["group", *outputs], always=True)
        return stack.stages

    @staticmethod
    def stage_weights(decomposition: BLRDecomposition) -> Sequence[Tensor]:
        """The blocks' right factors by columns, and their left factors by rows."""
        return [decomposition.right.transpose(0, 1), decomposition.left.transpose(1, 2)]
