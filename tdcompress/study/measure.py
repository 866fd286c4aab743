"""One trial: decompose, measure the errors, evaluate, and again after calibration and after fine-tuning."""

from __future__ import annotations

import copy
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tdcompress.errors import CompressionError
from tdcompress.layers import FactorizedConv
from tdcompress.methods import METHODS, get_method
from tdcompress.metrics import Metric, weight_errors
from tdcompress.outputs import Logits
from tdcompress.study.features import Features
from tdcompress.study.grid import Trial
from tdcompress.study.outputs import OutputErrors
from tdcompress.study.spec import FineTune, Spec
from tdcompress.study.states import CALIBRATED, change_to, checked, finetuned
from tdcompress.surgery import decompose

_CANNOT_BE_SENT = (pickle.PicklingError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True, eq=False)
class Job:
    """What all trials of a study need, wherever they run; it is sent to every worker once."""

    model: nn.Module
    evaluate: Callable[[nn.Module], Mapping[str, float]]
    finetune: dict[str | None, FineTune]
    calibrate: Callable[[nn.Module], nn.Module] | None
    data: Any
    metrics: tuple[Metric, ...]
    kinds: dict[str, type[FactorizedConv]]
    layers: tuple[str, ...]
    logits: Logits

    @classmethod
    def of(cls, study: Spec) -> Job:
        """What the trials of this study need."""
        kinds = {name: get_method(name) for name in study.options()}
        return cls(
            study.model,
            study.evaluate,
            study.strategies(),
            study.calibrate,
            study.data,
            tuple(study.chosen_metrics()),
            kinds,
            tuple(study.layer_names()),
            study.logits,
        )

    @property
    def needs_data(self) -> bool:
        """Whether a metric does."""
        return any(metric.needs_data for metric in self.metrics)

    def packed(self) -> bytes:
        """As bytes for other processes.

        Raises:
            CompressionError: a part cannot be sent; the message says which.
        """
        try:
            return pickle.dumps(self)
        except _CANNOT_BE_SENT as error:
            name = next((name for name, part in vars(self).items() if not _can_be_sent(part)), "the study")
            raise CompressionError(
                f"{name} cannot be sent to another process ({error}); functions and classes must stand at the top "
                "level of a module, without open files or locks. In this process, executor=None, anything goes."
            ) from error


@dataclass(frozen=True)
class Compressed:
    """A factorized layer, and what was measured before fine-tuning; runs that differ in that alone share it."""

    layer: bytes
    row: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: a row or a traceback.

    Attributes:
        row: the measurements by column; None if the trial failed.
        traceback: why it failed.
        compressed: for the other trials that share the decomposition, if it was asked for.
    """

    row: dict[str, Any] | None
    traceback: str | None = None
    compressed: Compressed | None = None


class Measurer:
    """Where trials are measured; it keeps what the trials of one layer share.

    Args:
        job: what to measure with.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._features: tuple[str, Features] | None = None
        self._outputs: OutputErrors | None = None
        self._one_at_a_time = threading.Lock()
        for name, kind in job.kinds.items():
            METHODS.setdefault(name, kind)  # a method of the user's, which this process has not seen yet

    def baseline(self) -> dict[str, float]:
        """What the model itself reaches.

        Raises:
            CompressionError: `evaluate` does not give finite numbers by name, or raises.
        """
        try:
            return self._performance(copy.deepcopy(self._job.model))
        except CompressionError:
            raise
        except Exception as error:
            raise CompressionError(
                f"evaluate fails for the model as it is, before anything is compressed: {error!r}"
            ) from error

    def measure(self, trial: Trial, shared: Compressed | None = None, share: bool = False) -> Outcome:
        """Measure a trial; whatever it raises is part of the outcome.

        Args:
            trial: what to measure.
            shared: what another trial of the same decomposition has measured already.
            share: whether others wait for this one's.
        """
        with self._one_at_a_time:
            began = time.perf_counter()
            try:
                if shared is None:
                    shared = self._compressed(trial, share)
                row = dict(shared.row)
                if self._job.finetune:
                    row |= self._finetuned(trial, shared)
            except Exception:  # a failed trial is a result
                return Outcome(None, traceback.format_exc(), shared if share else None)
            return Outcome({**row, "seconds": time.perf_counter() - began}, None, shared if share else None)

    def _compressed(self, trial: Trial, share: bool) -> Compressed:
        job, began = self._job, time.perf_counter()
        exact = not isinstance(trial.rank, str | None)
        model = decompose(
            job.model,
            trial.layer,
            trial.method,
            None if exact else trial.ratio,
            rank=trial.rank,
            solver=trial.options,
            seed=trial.seed,
        )
        decomposed = time.perf_counter()
        layer = model.get_submodule(trial.layer)
        assert isinstance(layer, FactorizedConv)
        # Packed before `evaluate` sees it, so that what it may do to the model reaches no other trial.
        needed = share or job.calibrate is not None or bool(job.finetune)
        packed = pickle.dumps(copy.deepcopy(layer).cpu()) if needed else b""
        sweeps = 0 if layer.solution is None else layer.solution.sweeps
        reached = {"rank": "x".join(map(str, layer.ranks)), "kept": 1 - layer.ratio, "sweeps": sweeps}
        errors = self._errors(trial.layer, layer)
        measured = time.perf_counter()
        performance = self._performance(model)
        evaluated = time.perf_counter()
        seconds = {
            "decompose_seconds": decomposed - began,
            "errors_seconds": measured - decomposed,
            "evaluate_seconds": evaluated - measured,
        }
        calibrated = {} if job.calibrate is None else self._calibrated(trial, packed)
        return Compressed(packed, {**reached, **errors, **performance, **calibrated, **seconds})

    def _errors(self, name: str, layer: FactorizedConv) -> dict[str, float]:
        metrics = self._job.metrics
        errors = weight_errors(self._job.model.get_submodule(name), layer, metrics)
        if any(metric.on == "features" for metric in metrics):
            if self._features is None or self._features[0] != name:
                self._features = None  # before the next layer's are made: both may not fit
                self._features = name, Features(self._job.model, name, self._job.data)
            errors |= self._features[1].errors(layer, metrics)
        on_outputs = [metric for metric in metrics if metric.on == "outputs"]
        if on_outputs:
            if self._outputs is None:
                job = self._job
                self._outputs = OutputErrors(job.model, job.layers, job.data, on_outputs, job.logits)
            errors |= self._outputs.errors(name, layer)
        return {metric.name: errors[metric.name] for metric in metrics}

    def _performance(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            performances = self._job.evaluate(model)
        return checked(performances, [metric.name for metric in self._job.metrics])

    def _calibrated(self, trial: Trial, packed: bytes) -> dict[str, float]:
        calibrate = self._job.calibrate
        assert calibrate is not None
        return self._changed(CALIBRATED, lambda: calibrate(self._with(trial.layer, packed)))

    def _finetuned(self, trial: Trial, shared: Compressed) -> dict[str, float]:
        finetune, prefix = self._job.finetune[trial.strategy], finetuned(trial.strategy)
        return self._changed(prefix, lambda: finetune(self._with(trial.layer, shared.layer), trial.seed))

    def _changed(self, prefix: str, change: Callable[[], nn.Module]) -> dict[str, float]:
        """The performances of a changed model, and the seconds that changing and evaluating it took.

        Args:
            prefix: what stands before the names of performances after the change.
            change: makes the model.
        """
        verb, began = change_to(prefix), time.perf_counter()
        model = change()
        if not isinstance(model, nn.Module):
            raise CompressionError(f"{verb} must return the model, and returned a {type(model).__name__}.")
        changed = time.perf_counter()
        row = {f"{prefix}{name}": value for name, value in self._performance(model).items()}
        seconds = {f"{verb}_seconds": changed - began, f"{prefix}evaluate_seconds": time.perf_counter() - changed}
        return row | seconds

    def _with(self, name: str, packed: bytes) -> nn.Module:
        """A copy of the model with a factorized layer in its place."""
        before = self._job.model.get_submodule(name)
        layer = pickle.loads(packed)
        place = next((tensor.device for tensor in before.parameters()), torch.device("cpu"))
        model: nn.Module = copy.deepcopy(self._job.model, {id(before): layer.to(place)})
        return model


def _can_be_sent(part: Any) -> bool:
    try:
        pickle.dumps(part)
    except _CANNOT_BE_SENT:
        return False
    return True
