"""An optimizer that was built before the swap, taught the new parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tdcompress.errors import CompressionError
from tdcompress.surgery.holders import kind_at

Parameters = Mapping[str, nn.Parameter]


def replace_parameters(optimizer: Optimizer, before: nn.Module | Parameters, after: nn.Module) -> None:
    """Make an optimizer that was built for one model go on with the model after `decompose` or `restore`.

    Parameters that both models have keep their place and their state: momenta and step counts. Those of a layer
    that was swapped give their place, and with it the hyper-parameters of their group, to the new layer's weights or
    bias, and their state is dropped. Parameters of other models stay as they are.

    Args:
        optimizer: it is changed in place, all or nothing. A learning rate scheduler that it has goes on with it.
        before: the model that it was built for. After a swap in place that model is gone; then give what
            `dict(model.named_parameters())` was before the swap.
        after: the model that it shall optimize.

    Raises:
        CompressionError: a parameter has no successor in `after`, or the optimizer mixes all parameters' history
            (LBFGS), so that a new one has to be built.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    >>> import tdcompress as td
    >>> small = td.decompose(model, "1", method="tucker", rank=(4, 5))
    >>> replace_parameters(optimizer, model, small)
    >>> [tuple(parameter.shape) for parameter in optimizer.param_groups[0]["params"]]
    [(8, 3, 3, 3), (8,), (5, 8, 1, 1), (4, 5, 3, 3), (8, 4, 1, 1), (8,)]
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise CompressionError("LBFGS keeps one history of all parameters together; build a new one instead.")
    successors = _successors(before, after)
    taken: set[int] = set()
    groups = [list(_moved(group, successors, taken)) for group in optimizer.param_groups]
    kept = {id(old): new[0][1] for old, new, same in successors.values() if same}
    state = {}
    for parameter, values in optimizer.state.items():
        if id(parameter) not in successors:
            state[parameter] = values
        elif id(parameter) in kept:
            state[kept[id(parameter)]] = values
    for group, entries in zip(optimizer.param_groups, groups, strict=True):
        group["params"][:] = [parameter for _, parameter in entries]
        if "param_names" in group:
            group["param_names"] = [name for name, _ in entries]
    optimizer.state.clear()
    optimizer.state.update(state)


# By the old parameter's id: itself, its successors by name, and whether the only one is the same parameter as before.
Successors = dict[int, tuple[nn.Parameter, list[tuple[str, nn.Parameter]], bool]]


def _successors(before: nn.Module | Parameters, after: nn.Module) -> Successors:
    old = dict(before.named_parameters(remove_duplicate=False)) if isinstance(before, nn.Module) else dict(before)
    new = dict(after.named_parameters(remove_duplicate=False))
    modules = dict(after.named_modules(remove_duplicate=False))
    successors: Successors = {}
    for name, parameter in old.items():
        if name in new and new[name].shape == parameter.shape:
            successors[id(parameter)] = parameter, [(name, new[name])], True
    for name, parameter in old.items():
        if id(parameter) not in successors:
            successors[id(parameter)] = parameter, _heirs(name, modules), False
    return successors


def _heirs(name: str, modules: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the layer in whose place the old parameter was: its weights or its bias."""
    path = name.split(".")
    layer = next(outer for outer in (".".join(path[:n]) for n in range(len(path) - 1, -1, -1)) if outer in modules)
    prefix, module = f"{layer}." if layer else "", modules[layer]
    heirs: list[tuple[str, nn.Parameter]] = []
    kind = kind_at(module)
    if kind is not None:
        # "bias" of a plain layer and of a last stage, and its parametrizations
        is_bias = any(word in path[-1] or word in path[-2:-1] for word in ("bias", kind.bias))
        heirs = [
            (prefix + local, parameter)
            for local, parameter in module.named_parameters()
            if (local.split(".")[-1] in ("bias", kind.bias)) == is_bias
        ]
    if not heirs:
        raise CompressionError(
            f"the new model has nothing in the place of the parameter {name!r}; are the two models of one kind?"
        )
    return heirs


def _moved(group: Mapping[str, Any], successors: Successors, taken: set[int]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a group after the swap, by name, each once in the whole optimizer."""
    names = group.get("param_names", [""] * len(group["params"]))
    for name, parameter in zip(names, group["params"], strict=True):
        _, heirs, same = successors.get(id(parameter), (parameter, [(name, parameter)], True))
        for new_name, heir in heirs:
            if id(heir) not in taken:
                taken.add(id(heir))
                yield (name if same else new_name), heir
