"""The trials of a study: which there are, and what tells their results apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tdcompress.decompositions import Options
from tdcompress.methods import get_method
from tdcompress.study.identity import data_digest, digest, metric_fields, model_digest, options_fields
from tdcompress.study.spec import Spec

FORMAT = 1  # of the hashes below; a change of it makes every trial a new one


@dataclass(frozen=True)
class Trial:
    """One layer decomposed by one method to one ratio, and what follows, in one repetition.

    Attributes:
        layer: the layer's name.
        method: a registered name.
        ratio: share of the layer's parameters to remove.
        run: number of the repetition, from 0.
        rank: an exact rank or a rule's name; None for the rank that is chosen for the ratio.
        options: what the method is told.
        seed: of random starts and of fine-tuning.
        key: a hash of all that the result depends on. Runs that cannot differ have one key, and are measured once.
        decomposition: a hash of what the factors depend on; trials that agree here share them.
        strategy: the name of what fine-tunes it; None without fine-tuning, or where that has no name.
        whole: a hash that is the same for trials that differ in the strategy alone, which are one row of the table;
            the key itself where strategies have no names.
    """

    layer: str
    method: str
    ratio: float
    run: int
    rank: int | tuple[int, ...] | str | None
    options: Options
    seed: int
    key: str
    decomposition: str
    strategy: str | None
    whole: str

    def __str__(self) -> str:
        named = "" if self.strategy is None else f" {self.strategy}"
        return f"{self.layer} {self.method} {self.ratio:.0%} run {self.run}{named}"


def trials(study: Spec, common: dict[str, dict[str, Any]]) -> Iterator[Trial]:
    """All trials, layer by layer, and those that share a decomposition one after the other.

    Args:
        study: what is asked.
        common: its `fields_of`.
    """
    by_method, strategies = study.options(), _strategies(study)
    for layer, methods in study.grid().items():
        for method in methods:
            options = by_method[method]
            fixed = get_method(method).deterministic(options)
            fields = options_fields(options)
            for ratio in study.ratios:
                rank = study.rank_of(layer, method, ratio)
                what = {**common["factors"], "layer": layer, "method": method, "solver": fields}
                what |= {"ratio": ratio, "rank": rank} if isinstance(rank, str | None) else {"rank": rank}
                for run in range(study.runs):
                    seed = study.seed + run
                    factors = digest({**what, "seed": None if fixed else seed})
                    tuned = None if study.finetune is None else seed
                    measured = {**common["measures"], "factors": factors, "finetune": tuned}
                    for strategy, identity in strategies.items():
                        key = digest({**measured, **identity})
                        whole = key if strategy is None else digest({**measured, "strategy": True})
                        yield Trial(layer, method, ratio, run, rank, options, seed, key, factors, strategy, whole)


def fields_of(study: Spec) -> dict[str, dict[str, Any]]:
    """What all trials of a study share: what their factors depend on, and what their measurements do besides."""
    metrics = study.chosen_metrics()
    on_data = any(metric.needs_data for metric in metrics)
    # Who gives a version says by that what data it was, as stores from before loaders could be hashed have it.
    known = data_digest(study.data, loaders=not study.version) if on_data else None
    measures: dict[str, Any] = {"metrics": metric_fields(metrics), "data": known, "version": study.version}
    if study.logits is not None:
        measures["logits"] = study.logits
    if study.calibrate is not None:  # only then, so that the trials of stores from before are still found
        measures["calibrate"] = True
    return {"factors": _factors(study), "measures": measures}


def _strategies(study: Spec) -> dict[str | None, dict[str, Any]]:
    """The names of the strategies, and what tells the results of each apart; a nameless one without fine-tuning."""
    found: dict[str | None, dict[str, Any]] = {}
    strategies = study.strategies()
    for name in strategies or (None,):
        version = getattr(strategies.get(name), "version", None)
        found[name] = {} if name is None else {"strategy": name}  # {} so that old stores' trials are still found
        if version is not None:
            found[name]["strategy_version"] = str(version)
    return found


def baseline_key(study: Spec) -> str:
    """What the performance of the model itself depends on."""
    return digest({**_factors(study), "version": study.version})


def _factors(study: Spec) -> dict[str, Any]:
    return {"format": FORMAT, "weights": model_digest(study.model)}


def groups(missing: Sequence[Trial]) -> list[list[Trial]]:
    """The trials that share a decomposition together, each key once, in the order of the grid."""
    by_decomposition: dict[str, dict[str, Trial]] = {}
    for trial in missing:
        by_decomposition.setdefault(trial.decomposition, {}).setdefault(trial.key, trial)
    return [list(group.values()) for group in by_decomposition.values()]
