"""A study and its verbs: `trials` says what will be measured, `run` measures what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from os import PathLike

from tdcompress.deferred import DataFrame
from tdcompress.study.driver import drive
from tdcompress.study.grid import Trial, baseline_key, fields_of, trials
from tdcompress.study.measure import Job
from tdcompress.study.spec import Spec
from tdcompress.study.store import Store
from tdcompress.study.workers import Workers

StorePath = str | PathLike[str]
_UNKNOWN_DATA = (
    "the data of the feature metrics cannot be hashed, so a study of other data would take these trials for its own. "
    "Pass version= and change it with the data, or give data= as tensors, a list of batches, or a DataLoader over a "
    "TensorDataset or a list."
)


class Study(Spec):
    """Decompose one layer at a time, in every way of a grid, and measure what it costs.

    A trial decomposes one layer by one method to one ratio, measures the approximation errors and evaluates the
    model. With `finetune` the decomposed model is fine-tuned and evaluated again, by each strategy on its own; so it
    is, on its own, with `calibrate`. The grid is the product of layers, methods, ratios and runs, without the layers
    that a method cannot take; run number r has the seed `seed + r`.

    Args:
        model: what is compressed; it is never changed.
        layers: names, globs, or a predicate, as `td.decompose` takes them. Globs and predicates pick for each method
            what it takes: with `"*"` and `["cp", "svd"]` the convolutions get trials of both, linear layers of SVD
            alone. A layer that is named must be one for every method.
        methods: registered names, or a mapping of names to what their solvers are told.
        ratios: shares of a layer's parameters to remove, each in (0, 1).
        runs: repetitions. Those that cannot differ (a deterministic method, not fine-tuned) are measured once.
        evaluate: a model to its performances by name, finite numbers; the columns of the table. It is called
            without gradients, and must leave the model as it is.
        finetune: a model of its own and a seed to the fine-tuned model, which may be the same object; the
            performances after it have `finetuned_` in front of their names. Or several such by name, each of which gets
            the model as it was decomposed: after the strategy `"adam"` the names begin with `finetuned[adam]_`. A
            function's attribute `version`, if it has one, tells apart what hashing cannot see of it alone, so that
            its change leaves the other strategies' results in place.
        data: inputs for errors of features and outputs, as `td.approximation_errors` takes them; they are gone through
            repeatedly. Those of outputs are measured on the first 512 samples, or fewer where a sample has many
            predictions.
        metrics: registered names; by default all on weights and, with `data`, on features. `output_divergence` and
            `predicted_loss` have to be named.
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
        logits: for metrics on outputs, what the output is, as for `td.approximation_errors`.

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

    def trials(self) -> list[Trial]:
        """The grid: all trials, in the order in which they are begun; one a strategy where strategies have names."""
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
            One row a trial, with `layer`, `method`, `ratio`, `run`, the `rank` found and the share of parameters
            `kept`, the errors, the performances, and the seconds it took. Failed trials are not in it. Those that
            differ in the strategy alone are one row, with nothing (NaN) where a strategy failed.

        Raises:
            CompressionError: the store cannot be used, `evaluate` fails for the model as it is, or something
                cannot be sent to the executor's processes.
        """
        job = Job.of(self)
        fields = fields_of(self)
        every = list(trials(self, fields))
        with Store(store) as opened:
            opened.plan(every)
            with Workers(job, executor, opened.path, under_way) as workers:
                if fields["measures"]["data"] is None and not self.version and job.needs_data:
                    warnings.warn(_UNKNOWN_DATA, stacklevel=2)
                opened.keep_baseline(baseline_key(self), workers.baseline)
                drive(every, opened, workers, progress, retry_failed)
            failed = opened.failed(every)
            if failed:
                warnings.warn(_failed(failed, opened.path), stacklevel=2)
            return opened.frame(every)

    def frame(self, store: StorePath = "study.sqlite") -> DataFrame:
        """The table of what has been measured so far, as `run` gives it; may be called while a study runs."""
        with Store(store, read_only=True) as opened:
            return opened.frame(self.trials())

    def failures(self, store: StorePath = "study.sqlite") -> DataFrame:
        """The failed trials: `layer`, `method`, `ratio`, `run`, `strategy` where they have names, and `traceback`."""
        with Store(store, read_only=True) as opened:
            return opened.failures(self.trials())

    def baseline(self, store: StorePath = "study.sqlite") -> dict[str, float]:
        """What `evaluate` gave for the model itself; empty before the study was run."""
        with Store(store, read_only=True) as opened:
            return opened.baseline(baseline_key(self))


def _failed(failed: Sequence[tuple[str, str]], path: StorePath) -> str:
    (first, traceback), count = failed[0], len(failed)
    last_line = traceback.strip().splitlines()[-1]
    return (
        f"{count} trial{'s' * (count > 1)} failed, the first of them {first}: {last_line}. They are in {path} with "
        "their tracebacks (study.failures()); run(retry_failed=True) tries them again."
    )
