"""What the library reads: compressed models, plans and the stores of studies."""

from __future__ import annotations

import copy
import json
import sqlite3
import struct
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from random import Random

import torch
from torch import nn

import tdcompress as td
from tdcompress.study import Study
from tdcompress.study.store import Store
from tests.fuzz.mutations import VALUES, changed_bytes, changed_json
from tests.fuzz.target import Target, packed


def network() -> nn.Module:
    """A small network of convolutions and a linear layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 6)]
    return nn.Sequential(*layers).eval()


# --- compressed models --------------------------------------------------------------------------------------


@cache
def _models() -> Mapping[str, bytes]:
    ways = {"tucker": ["0", "2"], "cp": ["2"], "svd": ["4"], "tt": ["2"]}
    small = {method: td.decompose(network(), layers, method, 0.3) for method, layers in ways.items()}
    return {f"{name}.safetensors": packed(partial(td.save, one)) for name, one in small.items()}


def _in_header(content: bytes, random: Random) -> bytes:
    """The header of a safetensors file or the description in it changed as JSON, with the header's length put right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if random.random() < 0.7:
        header["__metadata__"]["tdcompress"] = changed_json(header["__metadata__"]["tdcompress"], random)
        text = json.dumps(header)
    else:
        text = changed_json(json.dumps(header), random)
    return struct.pack("<Q", len(text)) + text.encode() + content[8 + length :]


def _load(path: Path) -> None:
    for inplace in (True, False):
        model = network()
        modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
        try:
            td.load(path, into=model, inplace=inplace)
        except td.CompressionError:
            after = model.state_dict()
            assert list(model.modules()) == modules, "the model's modules were changed"
            assert all(torch.equal(value, after[name]) for name, value in state.items()), "its values were changed"
            raise


# --- plans --------------------------------------------------------------------------------------------------


@cache
def _plans() -> Mapping[str, bytes]:
    told = {"cp": td.CPOptions(max_iter=20, starts=("random",)), "svd": None}
    images = torch.zeros(1, 3, 5, 5)
    plans = {
        "told": td.plan(network(), 0.4, methods=told, skip="4"),
        "macs": td.plan(network(), 0.3, methods="tt", layers=["0", "2"], objective="macs", example_inputs=images),
    }
    return {f"{name}.json": plan.to_json().encode() for name, plan in plans.items()}


@cache
def _told() -> tuple[object, ...]:
    return tuple(td.Plan.from_json(text.decode()).method_options for text in _plans().values())


def _in_json(content: bytes, random: Random) -> bytes:
    return changed_json(content.decode(), random).encode()


def _plan(path: Path) -> None:
    plan = td.Plan.from_json(path.read_text(encoding="utf-8", errors="surrogateescape"))
    assert td.Plan.from_json(plan.to_json()) == plan, "it is another one once written and read"
    for entry in plan.layers:
        str(plan), plan.ratio, plan[entry.layer]
    model = network()
    modules = list(model.modules())
    plan.check(model)
    if plan.method_options not in _told():  # one may ask for sweeps without end
        return
    try:
        plan.apply(model, inplace=True, progress=False)
    except td.CompressionError:
        assert list(model.modules()) == modules, "the model's modules were changed"
        raise


# --- the stores of studies ----------------------------------------------------------------------------------


def _evaluate(model: nn.Module) -> dict[str, float]:
    return {"norm": float(sum(value.double().norm() for value in model.parameters()))}


@cache
def _study() -> Study:
    return Study(network(), ["0", "2"], ["tucker", "svd"], [0.25, 0.5], 2, _evaluate, version="fuzz")


@cache
def _stores() -> Mapping[str, bytes]:
    def run(path: Path) -> None:
        _study().run(path, progress=False)
        with Store(path) as store:
            store.save(_study().trials()[0].key, None, "Traceback:\nValueError: of some kind")

    return {"study.sqlite": packed(run)}


_STATEMENTS = (
    "update {table} set {column} = ?",
    "update {table} set {column} = ? where {column} in (select {column} from {table} limit 1)",
    "delete from {table} where {column} in (select {column} from {table} limit ?)",
    "drop table {table}",
    "alter table {table} rename column {column} to other",
    "alter table {table} add column other",
    "create trigger t after insert on {table} begin delete from results; end",
    "create view v as select load_extension('x') from {table}",
    "pragma user_version = 2",
    "pragma application_id = 0",
)
_COLUMNS = {
    "trials": ("layer", "method", "ratio", "run", "key"),
    "results": ("key", "measured", "traceback", "environment", "ended"),
    "baselines": ("key", "measured"),
    "parts": ("key", "whole", "strategy"),
}


def _by_statement(content: bytes, random: Random) -> bytes:
    """The store after a statement that only SQLite's own rules allow."""
    table = random.choice(sorted(_COLUMNS))
    statement = random.choice(_STATEMENTS).format(table=table, column=random.choice(_COLUMNS[table]))
    value = random.choice([*VALUES, b"\xff\0", "{}", "[]", '{"norm": [1]}', '{"norm": 1e999}', "[" * 5000])
    if not isinstance(value, (int, float, str, bytes, type(None))) or (isinstance(value, int) and abs(value) >> 63):
        value = json.dumps(value)
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")

    def execute(path: Path) -> None:
        path.write_bytes(content)
        connection = sqlite3.connect(path, isolation_level=None)
        with suppress(sqlite3.Error):  # where its own rules do not allow it either
            connection.execute(statement, (value,) * statement.count("?"))
        connection.close()

    return packed(execute)


def _store(path: Path) -> None:
    before = path.read_bytes()
    try:
        _study().frame(path), _study().failures(path), _study().baseline(path)
        Store(path).close()
    except td.CompressionError:
        assert path.read_bytes() == before, "the file was changed"
        raise
    trials = _study().trials()
    with Store(path) as store:
        store.failed(trials), store.settled(), store.other_versions([trial.key for trial in trials]), store.frame()
        store.plan(trials)
        store.save("another", {"norm": 1.0}, None)


LIBRARY = {
    "models": Target(_models, (changed_bytes, _in_header, _in_header), _load),
    "plans": Target(_plans, (changed_bytes, _in_json, _in_json), _plan),
    "stores": Target(
        _stores, (changed_bytes, _by_statement), _store, ("-driver", "-wal", "-shm", "-journal"), writes=True
    ),
}
