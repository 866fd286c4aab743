"""distill(): fit all parameters of a compressed model to what the original says."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tdcompress.batches import Data, evaluating
from tdcompress.calibration.batch_norm import frozen_norms, restate
from tdcompress.calibration.calibrate import fitted
from tdcompress.calibration.descent import Best, Descent, Judge
from tdcompress.calibration.distillation_options import DistillationOptions
from tdcompress.calibration.lessons import Lessons, Listener, Teacher, divided
from tdcompress.outputs import Logits
from tdcompress.progress import Progress
from tdcompress.surgery.selection import names_of


@dataclass(frozen=True, repr=False)
class DistillationResult:
    """What `distill` made of a model.

    Every number says how far the output is from the original's on what was held out: the mean KL divergence of the
    predictions in nats, or Σ (output − target)² / Σ target² where outputs are no logits.

    Attributes:
        model: the best one.
        before: of the model as it was given.
        calibrated: after the local fit; None if there was none.
        passes: after each pass.
        after: of `model`.
        seconds: what all of it took.
    """

    model: nn.Module
    before: float
    calibrated: float | None
    passes: tuple[float, ...]
    after: float
    seconds: float

    def __repr__(self) -> str:
        local = "" if self.calibrated is None else f" → {self.calibrated:.4g} calibrated"
        return (
            f"DistillationResult: {self.before:.4g}{local} → {self.after:.4g} from the original on what was held out, "
            f"{len(self.passes)} passes, {self.seconds:.0f} s"
        )


def distill(
    compressed: nn.Module,
    data: Data,
    original: nn.Module,
    *,
    options: DistillationOptions | None = None,
    logits: Logits = None,
    seed: int = 0,
    inplace: bool = False,
    progress: Progress = None,
) -> DistillationResult:
    """Fit a compressed model to what the original says to inputs without labels: layer by layer, then as a whole.

    First `calibrate` fits every layer in closed form or nearly so. Then all parameters that require a gradient go down
    on `distillation_loss` on a one-cycle schedule, with clipped gradients: matrices by steps that are orthogonal (Muon,
    Jordan et al. 2024), all else by Adam. Both models are in evaluation mode all the while, so that the statistics of
    BatchNorm stay as the local fit left them, and nothing drops out; modes are restored. At the end each BatchNorm is
    written with the statistics that its input has by then, and a weight and a bias with which it answers the same, so
    that training can go on from there. A part of the data is held out. What is returned is the model after the last
    pass, if it is nearer to the original there than the given one and, within one standard error, as near as any; else
    whatever was nearest: the model after some pass, the calibrated one, or the one that was given. So it is no worse
    there than what was given.

    No label is read. The original is not changed. The same seed, machine and number of threads give the same bits on
    the CPU, if the augmentation draws from PyTorch's generators alone, which are as they were afterwards.

    Memory: a second copy of the model, for images on a CPU of the original too, three more of the model's parameters,
    one piece of the data forward and back, and up to 256 MB of what the original said, where pieces come again as they
    were: in a list or a tensor, without augmentation.

    Args:
        compressed: the model after, with factorized layers if there is a local fit. It is left alone unless `inplace`.
        data: batches of inputs as for `approximation_errors`, which can be gone through several times: a list, a tensor
            or a `DataLoader`, not a generator. What stands beside the inputs is not looked at. Of a list or tensor
            pieces are drawn to be held out; of a loader every so many-th batch of its first pass is, up to 1 024
            samples, and if it shuffles, these samples are trained on as well.
        original: the model before.
        options: how; `DistillationOptions()` by default.
        logits: what the outputs are, as for `approximation_errors`.
        seed: what the held out pieces, the order of the others, and augmentations are drawn from.
        inplace: change `compressed` itself, at the end. If it is interrupted by Ctrl-C, `compressed` is then what was
            best until there; without `inplace` nothing is changed and nothing comes back.
        progress: as for `decompose`; a piece is a pass. The local fit has its own bar.

    Returns:
        The model, and how near it came to the original.

    Raises:
        CompressionError: see `calibrate`; the outputs are not of one kind, or not finite, or the loss runs away to
            infinity or NaN. Then nothing has been changed.

    Example:
        >>> import tdcompress as td
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 10))
        >>> images = torch.randn(64, 3, 6, 6)
        >>> small = td.decompose(model.eval(), "2", method="tucker", ratio=0.9)
        >>> result = td.distill(small, images, model, options=td.DistillationOptions(passes=3))
        >>> result.after < result.before
        True
    """
    start = time.perf_counter()
    options = DistillationOptions() if options is None else options
    generator = torch.Generator().manual_seed(seed)
    lessons = divided(data, options.batch_size, options.held_out, generator)
    model = copy.deepcopy(compressed)
    frozen = frozen_norms(model)
    features = _features(model, original, options)
    with evaluating(model, original):
        lessons = lessons.laid_out(model, original)
        model, reference = lessons.suited(model), lessons.suited(original)
        judge = Judge(lessons.held_out, reference, logits)
        best = Best(model, judge.change(model))
        before, calibrated = best.change.value, None
        if options.local is not None:
            model.load_state_dict(_local(compressed, lessons, original, options, progress))
            change = judge.change(model)
            calibrated = change.value
            if not best.offer(model, change):
                model.load_state_dict(best.state)
        listener = Listener(features, logits, options.autocast)
        descent = Descent(model, lessons, Teacher(reference, listener), listener, options, generator)
        try:
            changes = descent.run(judge, best, progress)
            if not best.is_given:
                best.restated(model, partial(restate, batches=lessons.in_order, frozen=frozen), judge)
        except KeyboardInterrupt:
            if inplace:
                compressed.load_state_dict(best.state)
            raise
    found = compressed if inplace else copy.deepcopy(compressed)
    found.load_state_dict(best.state)
    return DistillationResult(found, before, calibrated, changes, best.change.value, time.perf_counter() - start)


def _features(model: nn.Module, original: nn.Module, options: DistillationOptions) -> list[str]:
    """The modules that are compared: in both models, and no two of one name."""
    if options.features is None:
        return []
    modules = dict(original.named_modules())
    own = {name for name, _ in model.named_modules()}
    return sorted(
        set(names_of({name: one for name, one in modules.items() if name in own}, options.features, "features"))
    )


def _local(
    compressed: nn.Module, lessons: Lessons, original: nn.Module, options: DistillationOptions, progress: Progress
) -> Mapping[str, Any]:
    """The state of the model when each of its layers is fitted, from what is trained on alone."""
    assert options.local is not None
    return fitted(copy.deepcopy(compressed), lessons.in_order, original, options.local, progress=progress).state_dict()
