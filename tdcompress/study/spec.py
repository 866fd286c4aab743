"""What a study is, and its two verbs: `trials` says what will be measured, `run` measures what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any

from torch import nn

from tdcompress.decompositions import Solver
from tdcompress.deferred import DataFrame
from tdcompress.errors import CompressionError
from tdcompress.methods import get_method
from tdcompress.metrics import METRICS, Metric, get_metrics
from tdcompress.study.driver import drive
from tdcompress.study.executors import Workplace
from tdcompress.study.grid import Trial, baseline_key, fields_of, trials
from tdcompress.study.measure import Job
from tdcompress.study.store import Store
from tdcompress.surgery import LayerSelector, select_layers
from tdcompress.surgery.selection import dense_layers

StorePath = str | PathLike[str]
Ranks = Callable[[str, str, float], "int | Sequence[int] | str | None"]
_UNKNOWN_DATA = (
    "the data of the feature metrics cannot be hashed, so a study of other data would take these trials for its own. "
    "Pass version= and change it with the data, or give data= as tensors, a list of batches, or a DataLoader over a "
    "TensorDataset or a list."
)


@dataclass(frozen=True, eq=False)
class Study:
    """Decompose one layer at a time, in every way of a grid, and measure what it costs.

    A trial decomposes one layer by one method to one ratio, measures the approximation errors and evaluates the
    model. With `finetune` the decomposed model is fine-tuned and evaluated again; so it is, on its own, with
    `calibrate`. The grid is the product of layers, methods, ratios and runs, without the layers that a method cannot
    take; run number r has the seed `seed + r`.

    Args:
        model: what is compressed; it is never changed.
        layers: names, globs, or a predicate, as `td.decompose` takes them. Globs and predicates pick for each method
            what it takes: with `"*"` and `["cp", "svd"]` the convolutions get trials of both, linear layers of SVD
            alone. A layer that is named must be one for every method.
        methods: registered names, or a dict of names to the options of their solvers.
        ratios: shares of a layer's parameters to remove, each in (0, 1).
        runs: repetitions. Those that cannot differ (a deterministic method, not fine-tuned) are measured once.
        evaluate: a model to its performances by name, finite numbers; the columns of the table. It is called
            without gradients, and must leave the model as it is.
        finetune: a model of its own and a seed to the fine-tuned model, which may be the same object; the
            performances after it have `finetuned_` in front of their names.
        data: inputs for feature errors, as `td.approximation_errors` takes them; they are gone through
            repeatedly.
        metrics: registered names; by default all on weights and, with `data`, all there are.
        ranks: a function of layer, method and ratio that gives an exact rank, or None to let the ratio
            decide; or a rule for all, such as `"tensorly-torch"`.
        seed: of the first run.
        version: anything that tells apart what hashing cannot see: `evaluate`, `finetune`, `calibrate`, and data
            that is not made of tensors. Change it when they change, and the trials are new ones. With a version, only
            data that is made of tensors alone is hashed; without one, also what a `DataLoader` draws from, where that
            can be, and a warning says where it cannot.
        calibrate: a model of its own to the calibrated one, which may be the same object, and the same for equal
            models, such as a function that calls `td.calibrate`; the performances after it have `calibrated_` in
            front of their names. It is not fine-tuned.

    Raises:
        CompressionError: an unknown layer, method or metric, a method that cannot take a layer that is named or takes
            none that is picked, a number out of its range, or feature metrics without data.

    Example:
        >>> import torch, tdcompress as td
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Flatten())
        >>> def evaluate(model):
        ...     return {"norm": float(model(torch.ones(1, 4, 3, 3)).norm())}
        >>> study = Study(model, "0", ["cp", "tucker"], [0.5, 0.75], runs=1, evaluate=evaluate)
        >>> [str(trial) for trial in study.trials()]
        ['0 cp 50% run 0', '0 cp 75% run 0', '0 tucker 50% run 0', '0 tucker 75% run 0']
    """

    model: nn.Module
    layers: LayerSelector
    methods: Sequence[str] | Mapping[str, Solver]
    ratios: Sequence[float]
    runs: int
    evaluate: Callable[[nn.Module], Mapping[str, float]]
    finetune: Callable[[nn.Module, int], nn.Module] | None = None
    data: Any = None
    metrics: Sequence[str] | None = None
    ranks: Ranks | str | None = None
    seed: int = 0
    version: str = ""
    calibrate: Callable[[nn.Module], nn.Module] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise CompressionError(f"model must be an nn.Module, got a {type(self.model).__name__}.")
        for name in self.solvers():
            get_method(name)
        self._check_numbers()
        self.grid()
        optional = [given for given in (self.finetune, self.calibrate) if given is not None]
        if not all(callable(given) for given in (self.evaluate, *optional)):
            raise CompressionError(
                "evaluate and calibrate must be functions of a model, and finetune one of a model and a seed."
            )
        on_features = [metric.name for metric in self.chosen_metrics() if metric.on == "features"]
        if on_features and self.data is None:
            raise CompressionError(f"{', '.join(on_features)} need inputs; pass data=, an iterable of batches.")
        if self.data is not None and isinstance(self.data, Iterator):
            raise CompressionError("data can be gone through only once; pass a tensor, a list of batches or a loader.")

    def trials(self) -> list[Trial]:
        """The grid: all trials, in the order in which they are begun."""
        return list(trials(self, fields_of(self)))

    def run(
        self,
        store: StorePath = "study.sqlite",
        executor: Executor | None = None,
        progress: bool = True,
        *,
        retry_failed: bool = False,
        under_way: int | None = None,
    ) -> DataFrame:
        """Measure the trials that the store does not have, and give the table of all that could be measured.

        A trial is committed to the store as it ends. A study that was stopped, by Ctrl-C, a crash or a power
        cut, goes on where it was when it is run again; a larger grid adds what is new. A trial that raises
        is kept with its traceback and stops nothing; `failures` lists them.

        Args:
            store: path of an SQLite file on a local disk, made if it is missing. Only this process writes it; a
                second driver of one file is refused.
            executor: what runs the trials: None for this process, `processes(…)` for several on this machine,
                Dask's `client.get_executor()` or `mpi4py.futures.MPIPoolExecutor` beyond it.
            progress: show a bar on standard error.
            retry_failed: run the failed trials again, too.
            under_way: how many trials the executor has at a time; by default one more than a process pool's
                workers, and 256 for other executors.

        Returns:
            One row a trial: `layer`, `method`, `ratio`, `run`, the `rank` found and the share of parameters
            `kept`, the errors, the performances, and the seconds it took. Failed trials are not in it.

        Raises:
            CompressionError: the store cannot be used, `evaluate` fails for the model as it is, or something
                cannot be sent to the executor's processes.
        """
        job = Job.of(self)
        fields = fields_of(self)
        every = list(trials(self, fields))
        with Store(store) as opened:
            opened.plan(every)
            with Workplace(job, executor, opened.path, under_way) as workplace:
                if fields["measures"]["data"] is None and not self.version and job.on_features:
                    warnings.warn(_UNKNOWN_DATA, stacklevel=2)
                opened.keep_baseline(baseline_key(self), workplace.baseline)
                drive(every, opened, workplace, progress, retry_failed)
            failed = opened.failed(every)
            if failed:
                warnings.warn(_failed(failed, opened.path), stacklevel=2)
            return opened.frame(every)

    def frame(self, store: StorePath = "study.sqlite") -> DataFrame:
        """The table of what has been measured so far, as `run` gives it; may be called while a study runs."""
        with Store(store, read_only=True) as opened:
            return opened.frame(self.trials())

    def failures(self, store: StorePath = "study.sqlite") -> DataFrame:
        """The failed trials: `layer`, `method`, `ratio`, `run`, and the `traceback` of each."""
        with Store(store, read_only=True) as opened:
            return opened.failures(self.trials())

    def baseline(self, store: StorePath = "study.sqlite") -> dict[str, float]:
        """What `evaluate` gave for the model itself; empty before the study was run."""
        with Store(store, read_only=True) as opened:
            return opened.baseline(baseline_key(self))

    def layer_names(self) -> list[str]:
        """The layers in full."""
        return list(self.grid())

    def grid(self) -> dict[str, list[str]]:
        """The methods that each layer is decomposed by."""
        kinds = {method: get_method(method) for method in self.solvers()}
        matrices = any(kind.takes_linear for kind in kinds.values())
        found: dict[str, list[str]] = {name: [] for name, _ in select_layers(self.model, self.layers, linear=matrices)}
        matrix = {name for name, _ in dense_layers(self.model, linear=True)}
        matrix -= {name for name, _ in dense_layers(self.model, linear=False)}
        for method, kind in kinds.items():
            try:
                picked = select_layers(self.model, self.layers, linear=kind.takes_linear)
            except CompressionError as error:
                raise CompressionError(f"method {method!r} takes none of the layers: {error}") from None
            for name, module in picked:
                if name in matrix and not kind.takes_linear:
                    raise CompressionError(
                        f"layer {name!r}: method {method!r} cannot take a {type(module).__name__}; leave one of them "
                        "out, or pick the layers by a glob or a predicate, and each method gets those that it can take."
                    )
                found[name].append(method)
        return found

    def solvers(self) -> dict[str, Solver]:
        """What each method is told."""
        methods = [self.methods] if isinstance(self.methods, str) else self.methods
        return dict(methods) if isinstance(methods, Mapping) else dict.fromkeys(methods)

    def chosen_metrics(self) -> list[Metric]:
        """The metrics, in the order of the table's columns."""
        if self.metrics is not None:
            return get_metrics([self.metrics] if isinstance(self.metrics, str) else self.metrics)
        return [metric for metric in METRICS.values() if self.data is not None or metric.on == "weights"]

    def rank_of(self, layer: str, method: str, ratio: float) -> int | tuple[int, ...] | str | None:
        """The rank or rule of a trial; None where the ratio decides."""
        rank = self.ranks(layer, method, ratio) if callable(self.ranks) else self.ranks
        if rank is None or isinstance(rank, str | int):
            return rank
        return tuple(int(entry) for entry in rank)

    def _check_numbers(self) -> None:
        if not self.solvers() or not len(self.ratios):
            raise CompressionError("a study needs at least one method and one ratio.")
        for ratio in self.ratios:
            if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < ratio < 1:
                raise CompressionError(f"ratios are shares to remove, between 0 and 1; found {ratio!r}.")
        if len(set(self.ratios)) < len(self.ratios):
            raise CompressionError(f"a ratio occurs twice in {list(self.ratios)}.")
        if isinstance(self.runs, bool) or not isinstance(self.runs, Integral) or self.runs < 1:
            raise CompressionError(f"runs must be a whole number from 1, found {self.runs!r}.")


def _failed(failed: Sequence[tuple[str, str]], path: StorePath) -> str:
    (first, traceback), count = failed[0], len(failed)
    last_line = traceback.strip().splitlines()[-1]
    return (
        f"{count} trial{'s' * (count > 1)} failed, the first of them {first}: {last_line}. They are in {path} with "
        "their tracebacks (study.failures()); run(retry_failed=True) tries them again."
    )
