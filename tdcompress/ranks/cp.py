"""CP: parameters, ranks, and the curve of error against rank at the cost of a few factorizations of the kernel.

Orthogonal terms, where the sweeps begin, have their error in closed form at every rank. What sweeps make of it, the
ratio of the two errors, falls smoothly with the share of the kernel's parameters that the rank takes, and depends
little on the kernel's size. So it is measured at a few shares, each on the kernel itself if that is cheap enough, and
else on a smaller one with singular directions from all over its spectra; between the shares it is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tdcompress.decompositions import CPOptions, bridge, cp_limit
from tdcompress.decompositions.algebra import leading_subspace, mode_dot, squared_singular_values, unfold
from tdcompress.decompositions.als import Sweep
from tdcompress.decompositions.extrapolation import Run
from tdcompress.decompositions.orthogonal import OrthogonalTerms
from tdcompress.ranks.budget import kept_share, tail_shares
from tdcompress.shapes import Point, Rank
from tdcompress.threads import threads_by_kernel, threads_for

_SHARES = (0.02, 0.05, 0.12, 0.25, 0.45, 0.7, 0.95)  # of the parameters, at which sweeps are made
_SWEEPS = (10, 30)  # of which the second number tells the error, and both where it is going
_WORK = 1e9  # floating-point operations that the sweeps at one share may take,
_WORK_PER_WEIGHT = 1e3  # or so many for each of the kernel's weights
_WHOLE = 9  # modes up to this size, such as spatial ones, are never made smaller
_GROUPS = 4  # of a convolution that are swept for; orthogonal terms are taken of all
_CARRIED = 0.8  # from this share on, what a smaller kernel says is right as it is
_FEWEST = 4  # terms that tell how far a smaller kernel is off
_NOTHING = 1e-10  # of the squared norm: beyond this rank there is nothing left to lose


def cp_parameters(modes: Sequence[int], rank: Sequence[int]) -> int:
    """Parameters of a CP decomposition: one vector a mode and term.

    >>> cp_parameters((64, 64, 3, 3), (28,))
    3752
    """
    return rank[0] * sum(modes)


def cp_ranks(modes: Sequence[int], budget: int) -> list[Rank]:
    """The largest CP rank within `budget` parameters; none if none fits.

    >>> cp_ranks((64, 64, 3, 3), 3686)
    [(27,)]
    """
    rank = min(budget // sum(modes), cp_limit(modes))
    return [(rank,)] if rank else []


def cp_rule(kernel_shape: Sequence[int], ratio: float) -> Rank:
    """The rank that tensorly-torch would take for `ratio`: the paper's rule, proportional to the shape.

    Args:
        kernel_shape: (out, in / groups, *kernel_size), spatial sizes of 1 included.
        ratio: the share of the parameters to remove. The rule rounds, so it may keep a little more than asked.

    Returns:
        (rank,).

    Raises:
        CompressionError: `ratio` is no number in (0, 1).

    >>> cp_rule((64, 64, 3, 3), 0.9)
    (28,)
    """
    kept_share(ratio)  # for its check of the ratio
    return bridge.cp_rank(kernel_shape, 1 - ratio)


@threads_by_kernel
def cp_curve(kernels: Tensor, budgets: Sequence[int]) -> list[Point]:
    """About what the default solver loses at the largest rank within each budget; exact for a matrix.

    Args:
        kernels: shape (groups, *modes).
        budgets: parameters for one group.

    Returns:
        Ranks with the squared relative error, which does not rise with the rank.
    """
    modes = tuple(kernels.shape[1:])
    ranks = sorted({rank for budget in budgets for rank in cp_ranks(modes, budget)})
    if not ranks:
        return []
    places = torch.tensor([rank[0] for rank in ranks], device="cpu")
    tensors = _ordered(kernels)
    if tensors.ndim == 3:
        squares = squared_singular_values(tensors).sum(0)
        lost = torch.tensor(tail_shares(squares), device="cpu")[places].numpy()
    elif tensors.any():
        lost = _Swept(tensors).lost(places)
    else:
        lost = np.zeros(len(ranks))
    return list(zip(ranks, np.minimum.accumulate(lost).tolist(), strict=True))


def _ordered(kernels: Tensor) -> Tensor:
    """The kernels in float32 and in range, their modes in order of size, without modes of 1 where two are longer."""
    order = sorted(range(1, kernels.ndim), key=lambda mode: -kernels.shape[mode])
    sizes = [kernels.shape[mode] for mode in order]
    long = max(2, sum(size > 1 for size in sizes))
    largest = kernels.abs().amax().clamp(min=torch.finfo(kernels.dtype).tiny)
    return (kernels / largest).float().permute(0, *order).reshape(len(kernels), *sizes[:long])


class _Swept:
    """Kernels of order 3 or more: the error of their orthogonal terms, and what sweeps make of it.

    Args:
        tensors: shape (groups, *modes), with the modes in order of size.
    """

    def __init__(self, tensors: Tensor) -> None:
        energy = tensors.flatten(1).square().sum(1)
        filled = [int(place) for place in energy.nonzero()]
        chosen = {filled[len(filled) * i // _GROUPS] for i in range(_GROUPS)}
        lost, kept = [], []
        for place, tensor in enumerate(tensors):
            terms = OrthogonalTerms(tensor)
            lost.append(terms.lost)
            if place in chosen:
                kept.append((tensor, terms))
        self._lost, self._original = torch.stack(lost).sum(0), _Sample(kept)
        self._work = max(_WORK, _WORK_PER_WEIGHT * tensors.numel()) / len(kept)

    def lost(self, ranks: Tensor) -> np.ndarray:
        """The squared relative errors at ranks."""
        orthogonal = (self._lost / self._lost[0]).cpu()
        return orthogonal[ranks].numpy() * self._ratio(ranks.numpy() / self._original.terms) ** 2

    def _ratio(self, shares: np.ndarray) -> np.ndarray:
        """The error after sweeps over that of orthogonal terms, at shares of the parameters."""
        from scipy.interpolate import PchipInterpolator  # takes its time to load

        places, logs = self._measured()
        if len(places) == 1:
            return np.ones_like(shares)
        return np.asarray(PchipInterpolator(places, np.exp(logs))(shares.clip(max=places[-1])))

    def _measured(self) -> tuple[list[float], list[float]]:
        """Shares, with the logarithm of the ratio at each; it is 0 at none."""
        places, logs = [0.0], [0.0]
        for share in _SHARES:
            sample = self._affordable(share)
            rank = round(share * sample.terms)
            place = rank / sample.terms
            if place <= places[-1] or not sample.takes(rank):
                continue
            log = sample.log_ratio(rank)
            if sample is not self._original:
                # How far a smaller kernel is off is seen at the share before, and fades towards many terms.
                before = round(places[-1] * sample.terms)
                if place < _CARRIED and before >= _FEWEST and sample.takes(before):
                    fading = (_CARRIED - place) / (_CARRIED - places[-1])
                    log += fading * (logs[-1] - sample.log_ratio(before))
            places.append(place)
            logs.append(min(log, 0.0))
        return places, logs

    def _affordable(self, share: float) -> _Sample:
        """The kernels themselves, or smaller ones on which the sweeps keep to the work."""
        shape, part = self._original.shape, 1.0
        while _operations(shape, share) > self._work and max(shape) > _WHOLE:
            part *= 0.95
            shape = tuple(max(min(size, _WHOLE), math.ceil(part * size)) for size in self._original.shape)
        return self._original if shape == self._original.shape else self._original.reduced(shape)


class _Sample:
    """Some groups' kernels and their orthogonal terms."""

    def __init__(self, kernels: Sequence[tuple[Tensor, OrthogonalTerms]]) -> None:
        self._kernels = kernels
        self.shape = tuple(kernels[0][0].shape)
        self.terms = math.prod(self.shape) / sum(self.shape)  # that have as many parameters as the dense kernel
        self._lost = torch.stack([terms.lost for _, terms in kernels]).sum(0)

    def takes(self, rank: int) -> bool:
        """Whether a rank is one that sweeps are needed for."""
        return 1 <= rank < cp_limit(self.shape) and bool(self._lost[rank] > _NOTHING * self._lost[0])

    def log_ratio(self, rank: int) -> float:
        """The logarithm of the error that sweeps end at over the orthogonal terms' own."""
        early = late = 0.0
        for kernel, terms in self._kernels:
            with threads_for(kernel.numel()):
                sweep = Sweep(kernel, CPOptions().penalty)
                run = Run(sweep, terms.rows(rank))
                run.advance(_SWEEPS[0], 0.0)
                early += float(run.error**2 * sweep.square)
                run.advance(_SWEEPS[1] - _SWEEPS[0], 0.0)
                late += float(run.error**2 * sweep.square)
        late = max(late, _NOTHING * float(self._lost[0]))
        # The more terms, the longer sweeps go on as they did; fitted to where the default solver stops.
        going_on = (0.5 + rank / self.terms) * max(0.0, math.log(early / late))
        return (math.log(late) - going_on - math.log(float(self._lost[rank]))) / 2

    def reduced(self, shape: tuple[int, ...]) -> _Sample:
        """Smaller kernels, whose singular directions are taken at even distances."""
        reduced_kernels = []
        for core in self._cores:
            for mode, size in enumerate(shape):
                filled = max(size, min(core.shape[mode], core.numel() // core.shape[mode]))
                places = torch.arange(size, device=core.device).add(0.5).mul(filled / size).long()
                core = core.index_select(mode, places)
            with threads_for(core.numel()):
                reduced_kernels.append((core, OrthogonalTerms(core)))
        return _Sample(reduced_kernels)

    @cached_property
    def _cores(self) -> list[Tensor]:
        """The kernels in the singular bases of their long modes."""
        cores = []
        for kernel, _ in self._kernels:
            core = kernel
            for mode, size in enumerate(self.shape):
                if size > _WHOLE:
                    core = mode_dot(core, leading_subspace(unfold(kernel, mode), size).mT.to(kernel), mode)
            cores.append(core)
        return cores


def _operations(shape: Sequence[int], share: float) -> float:
    """Of the sweeps at a share of the parameters: two products with the kernel, and a factorization for each mode."""
    size = math.prod(shape)
    rank = share * size / sum(shape)
    return _SWEEPS[1] * (4 * size * rank + len(shape) * rank**3 / 3)
