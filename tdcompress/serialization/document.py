"""What was swapped and how, as JSON: written from layers, and read from a file that nobody vouches for."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from tdcompress.decompositions import Solution
from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FactorizedConv
from tdcompress.layers.kinds import default_kind, kind_of
from tdcompress.methods import METHODS, get_method

FORMAT_VERSION = 1
METADATA_KEY = "tdcompress"  # under which a file has the document
_LONGEST = 1 << 24  # characters: far more than the largest models need

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 100


def document_of(layers: Mapping[str, FactorizedConv], aliases: Mapping[str, str], left: Mapping[str, str]) -> str:
    """The JSON that goes into a file.

    Args:
        layers: the factorized layers by name.
        aliases: names of tensors that are stored under another name.
        left: why layers were left dense, by name.

    Raises:
        CompressionError: a layer's class is not registered, so that no reader would know it.
    """
    entries = [{"name": name, **_entry(name, layer)} for name, layer in layers.items()]
    document = {"version": FORMAT_VERSION, "layers": entries, "aliases": dict(aliases), "left_dense": dict(left)}
    return json.dumps(document)


def _entry(name: str, layer: FactorizedConv) -> dict[str, Any]:
    method = next((key for key, kind in METHODS.items() if kind is type(layer)), None)
    if method is None:
        raise CompressionError(
            f"{type(layer).__name__} is not registered, so no reader would know it; use td.register_method."
        ).at(name)
    return {
        "method": method,
        "spec": asdict(layer.spec),
        "rank": layer.ranks,
        "axes": layer.axes,
        "ratio_asked": layer.ratio_asked,
        "solution": None if layer.solution is None else asdict(layer.solution),
    }


def parse(text: str) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, str]]:
    """The entries of the layers, the aliases of the tensors, and what was left dense.

    Of the entries, only that they are objects is checked.

    Raises:
        CompressionError: it is no such JSON, or of a newer version.
    """
    if len(text) > _LONGEST:
        raise CompressionError(f"its description has {len(text)} characters; no more than {_LONGEST} are read.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompressionError(f"its description is damaged: {type(error).__name__}.") from None
    version = _field(document, "version", int)
    if version > FORMAT_VERSION:
        raise CompressionError(
            f"it was written by a newer tdcompress (format {_shown.repr(version)}; this one reads {FORMAT_VERSION}); "
            "upgrade tdcompress."
        )
    layers, aliases = _field(document, "layers", list), _texts(document, "aliases")
    left = _texts(document, "left_dense") if "left_dense" in document else {}  # older files do not say
    return layers, aliases, {name: _printable(reason) for name, reason in left.items()}


def layer_of(entry: Any, modules: Mapping[str, nn.Module]) -> tuple[str, FactorizedConv]:
    """The layer that an entry describes, on the meta device, and the name of the module whose place it takes.

    Args:
        entry: from `parse`.
        modules: the modules of the model that is loaded into, by name.

    Raises:
        CompressionError: the entry is damaged, or the model has another layer there; the first difference is named.
    """
    name = _field(entry, "name", str)
    if name not in modules:
        raise CompressionError(f"it has a factorized layer {_shown.repr(name)}; the model has no module of that name.")
    try:
        spec = _spec_at(modules[name])
        _check_spec(_field(entry, "spec", dict), spec)
        kind = get_method(_field(entry, "method", str))
        axes = _axes(entry)
        kind.check_axes(spec, axes)
        layer = kind(spec, _rank(entry), axes, device="meta")
    except CompressionError as error:
        raise error.at(name) from None
    except (TypeError, ValueError, IndexError, KeyError) as error:  # from a method's own arithmetic
        misfit = CompressionError(f"rank {_shown.repr(entry['rank'])} and its axes fit no such layer: {error}.")
        raise misfit.at(name) from None
    layer.ratio_asked = _number(entry, "ratio_asked", optional=True)
    layer.solution = _solution(entry)
    return name, layer


def _spec_at(module: nn.Module) -> ConvSpec:
    if isinstance(module, FactorizedConv):
        return module.spec
    if kind_of(module) is None:
        raise CompressionError(f"the file has a factorized layer, the model a {type(module).__name__}.")
    return ConvSpec.read(module)


def _check_spec(fields: Mapping[str, Any], spec: ConvSpec) -> None:
    expected = json.loads(json.dumps(asdict(spec)))
    # Files that were written when there were only PyTorch's own kinds do not name them.
    fields = {"kind": default_kind(len(spec.kernel_size), spec.transposed), "options": [], **fields}
    if fields.keys() != expected.keys():
        raise _damaged("spec", fields)
    for name, value in expected.items():
        if fields[name] != value:
            raise CompressionError(f"the file has {name}={_shown.repr(fields[name])}, the model {name}={value!r}.")


def _rank(entry: Mapping[str, Any]) -> tuple[int, ...]:
    rank = _field(entry, "rank", list)
    if not all(type(r) is int for r in rank):
        raise _damaged("rank", rank)
    return tuple(rank)


def _axes(entry: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    axes = _field(entry, "axes", list)
    if not all(isinstance(group, list) and all(type(axis) is int for axis in group) for group in axes):
        raise _damaged("axes", axes)
    return tuple(tuple(group) for group in axes)


def _solution(entry: Mapping[str, Any]) -> Solution | None:
    if entry.get("solution") is None:
        return None
    fields = _field(entry, "solution", dict)
    return Solution(
        relative_error=_number(fields, "relative_error") or 0.0,
        sweeps=_field(fields, "sweeps", int),
        converged=_field(fields, "converged", bool),
        seconds=_number(fields, "seconds") or 0.0,
        sensitivity=_number(fields, "sensitivity", optional=True),
    )


def _number(entry: Mapping[str, Any], key: str, optional: bool = False) -> float | None:
    if optional and entry.get(key) is None:
        return None
    value = _field(entry, key, float)
    if math.isnan(value):
        raise _damaged(key, value)
    return value


def _texts(document: Any, key: str) -> dict[str, str]:
    texts = _field(document, key, dict)
    if not all(isinstance(text, str) for text in texts.values()):
        raise _damaged(key, texts)
    return texts


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _field(entry: Any, key: str, kind: type[Any]) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:  # not isinstance: True is no number here
        raise _damaged(key, value)
    return value


def _damaged(key: str, value: object) -> CompressionError:
    return CompressionError(f"its description is damaged: {key} is {_shown.repr(value)}.")
