"""All parameters of a model, down the gradient of how far it is from what the original says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from tdcompress.batches import channels_last
from tdcompress.calibration.distillation_loss import Change, information, loss_between, squared_change
from tdcompress.calibration.distillation_options import DistillationOptions
from tdcompress.calibration.lessons import Key, Lessons, Listener, Said, Teacher
from tdcompress.calibration.muon import Muon, are_matrices
from tdcompress.errors import CompressionError
from tdcompress.outputs import Logits, gradients_of
from tdcompress.progress import Progress, following

_LEAST_SIZE = 1e-2  # of a parameter, to which its learning rate is relative


class Judge:
    """Says how far a model is from the original on what is held out.

    Args:
        held_out: pieces of the data.
        original: in evaluation mode.
        logits: what outputs are.
    """

    def __init__(self, held_out: Sequence[Any], original: nn.Module, logits: Logits) -> None:
        self._held_out = held_out
        self._listener = Listener((), logits, autocast=False)
        self._teacher = Teacher(original, self._listener)

    def change(self, model: nn.Module) -> Change:
        """How far it is."""
        with torch.no_grad():
            return Change.of(
                (self._teacher.says(piece, number).output, self._listener.hear(model, piece).output)
                for number, piece in enumerate(self._held_out)
            )

    def said(self) -> float:
        """What the original says of what is held out, in the unit of a change: see `information`."""
        return information(self._teacher.says(piece, number).output for number, piece in enumerate(self._held_out))


class Best:
    """What a model was when it was nearest to the original.

    Attributes:
        change: how near.
        state: its state then.
    """

    def __init__(self, model: nn.Module, change: Change) -> None:
        self._given = self.change = change
        self.state = _copied(model)

    @property
    def is_given(self) -> bool:
        """Whether nothing was nearer than the model that was given."""
        return self.change is self._given

    def restated(self, model: nn.Module, restate: Callable[[nn.Module], None], judge: Judge) -> None:
        """Write the same function in another way.

        Args:
            model: to do it on.
            restate: does it.
            judge: how near it is then, up to rounding where it was.
        """
        model.load_state_dict(self.state)
        restate(model)
        self._take(model, judge.change(model))

    def offer(self, model: nn.Module, change: Change) -> bool:
        """Take the model's state if it is nearer now, and say whether it was."""
        if not change.value < self.change.value:
            return False
        self._take(model, change)
        return True

    def offer_last(self, model: nn.Module, change: Change) -> None:
        """Take the state that the descent has come to, unless it is clearly farther.

        The least of many numbers that waver is partly luck, and a network that is still in motion; that the last one is
        as good within one standard error is enough (the rule of Breiman, Friedman, Olshen & Stone 1984).
        """
        if change.value < self._given.value and change.is_within_noise_of(self.change):
            self._take(model, change)

    def _take(self, model: nn.Module, change: Change) -> None:
        # Copied first: an interruption leaves either the one or the other.
        state = _copied(model)
        self.change, self.state = change, state


def _copied(model: nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }


@dataclass(frozen=True)
class Descent:
    """A model on its way down.

    Attributes:
        model: in evaluation mode; it is changed.
        lessons: the data.
        teacher: the original.
        listener: how the model is run.
        options: how it goes.
        generator: what order and augmentations are drawn from.
    """

    model: nn.Module
    lessons: Lessons
    teacher: Teacher
    listener: Listener
    options: DistillationOptions
    generator: torch.Generator

    def run(self, judge: Judge, best: Best, progress: Progress) -> tuple[float, ...]:
        """All passes, each judged at its end.

        Returns:
            How far the model was from the original after each.

        Raises:
            CompressionError: no parameter requires a gradient or the output has none, or the loss is not finite.
        """
        options, changes, waited = self.options, [], 0
        rate = options.learning_rate
        if rate is None:
            rate = options.peak_rate(best.change.value / judge.said())
        steps = _Steps(self.model, options, rate, options.passes * self.lessons.steps)
        with following(progress, options.passes, "distill") as step:
            for number in range(options.passes):
                for key, piece in self.lessons.shuffled(self.generator):
                    steps.down(self._loss(key, piece), number)
                change = judge.change(self.model)
                changes.append(change.value)
                waited = 0 if best.offer(self.model, change) else waited + 1
                step(f"pass {number + 1}, {change.value:.4g} from the original")
                if waited == options.patience:
                    break
            else:
                best.offer_last(self.model, change)
        return tuple(changes)

    def _loss(self, key: Key, piece: Any) -> Tensor:
        if self.options.augment is not None:
            key, piece = None, self._augmented(piece)
        with torch.enable_grad():
            goal, said = self.teacher.says(piece, key), self.listener.hear(self.model, piece)
            loss = loss_between(goal.output, said.output, self.options.temperature)
            if self.listener.features:
                loss = loss + self.options.features_weight * _features_between(goal, said)
        return loss

    def _augmented(self, piece: Any) -> Any:
        assert self.options.augment is not None
        with _drawing_from(int(torch.randint(2**62, (), generator=self.generator))):
            changed = self.options.augment(piece)
        return channels_last(changed) if self.lessons.channels_last else changed


class _Steps:
    """Muon or Adam on a one-cycle schedule, with clipped gradients; on copies in float32 of what is in half precision.

    Muon is for matrices: Adam takes what is none.
    """

    def __init__(self, model: nn.Module, options: DistillationOptions, rate: float, total: int) -> None:
        self._options, self._rate, self._total, self._done = options, rate, total, 0
        found = list(are_matrices(model))
        if not found:
            raise CompressionError("no parameter of the model requires a gradient, so there is nothing to train.")
        self._parameters = [parameter for parameter, _ in found]
        self._trained = [_in_float32(parameter) for parameter in self._parameters]
        groups: dict[type[Optimizer], list[dict[str, Any]]] = {Muon: [], Adam: []}
        for trained, (_, is_matrix) in zip(self._trained, found, strict=True):
            # Relative to its size: a rate for all would change small stages much and large ones little.
            size = max(float(trained.detach().square().mean().sqrt()), _LEAST_SIZE)
            kind = Muon if is_matrix and options.optimizer == "muon" else Adam
            groups[kind].append({"params": [trained], "size": size})
        self._optimizers = [kind(some, lr=rate) for kind, some in groups.items() if some]  # type: ignore[call-arg]

    def down(self, loss: Tensor, number: int) -> None:
        """One step, in the pass of that number."""
        for parameter, gradient in zip(self._trained, gradients_of(loss, self._parameters), strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        norm = nn.utils.clip_grad_norm_(self._trained, self._options.clip_norm)
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            raise CompressionError(
                f"the loss ran away in pass {number + 1}: it is {float(loss.detach()):.4g}, and the norm of its "
                f"gradient {float(norm):.4g}; lower learning_rate, which is {self._rate:.4g}."
            )
        rate = self._rate * self._options.rate_at(self._done / self._total)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["size"]
            optimizer.step()
            optimizer.zero_grad()
        self._done += 1
        with torch.no_grad():
            for own, trained in zip(self._parameters, self._trained, strict=True):
                if own is not trained:
                    own.copy_(trained)


def _in_float32(parameter: Tensor) -> Tensor:
    if parameter.dtype in (torch.float16, torch.bfloat16):
        return parameter.detach().float().requires_grad_()
    return parameter


def _features_between(goal: Said, said: Said) -> Tensor:
    """The mean relative squared change of all answers that are compared."""
    changes = []
    for name, before in goal.features.items():
        after = said.features[name]
        if [one.shape for one in before] != [one.shape for one in after]:
            raise CompressionError(
                f"features: the two models call {name!r} differently: it answers {[tuple(x.shape) for x in before]} in "
                f"the original, and {[tuple(x.shape) for x in after]} in the compressed model."
            )
        changes += [squared_change(*pair) for pair in zip(before, after, strict=True)]
    if not changes:
        raise CompressionError(f"features: a forward reaches none of {', '.join(map(repr, goal.features))}.")
    return torch.stack(changes).mean()


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """PyTorch's global generators at a seed inside the block, and as they were after it."""
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield
