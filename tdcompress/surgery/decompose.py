"""decompose(), and what it would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor

import torch
from torch import nn

from tdcompress.decompositions import Solver
from tdcompress.errors import CompressionError
from tdcompress.layers import ConvSpec, FisherFactors, InputMoments
from tdcompress.layers.kinds import reads_features
from tdcompress.layers.request import Request
from tdcompress.layers.search import check_reachable
from tdcompress.methods import get_method, taking
from tdcompress.progress import Progress
from tdcompress.shapes import AskedRank, Axes
from tdcompress.surgery.left import OnRefusal, Refusals, without
from tdcompress.surgery.plain import Hooks, Parametrized, Policy, check_wrapper, plain
from tdcompress.surgery.replacement import Problem, Replacement, replaced
from tdcompress.surgery.selection import LayerSelector, check_selector, dense_layers, select_layers
from tdcompress.surgery.ties import cut_ties, tied_groups


def decompose(
    model: nn.Module,
    layer: LayerSelector,
    method: str = "tucker",
    ratio: float | None = None,
    *,
    rank: AskedRank = None,
    solver: Solver = None,
    inplace: bool = False,
    seed: int | torch.Generator = 0,
    hooks: Hooks = "refuse",
    parametrized: Parametrized = "refuse",
    allow_subclasses: bool = False,
    axes: Axes | None = None,
    whiten: Mapping[str, InputMoments | FisherFactors] | None = None,
    skip: LayerSelector | None = None,
    on_refusal: OnRefusal = "raise",
    executor: Executor | None = None,
    progress: Progress = None,
) -> nn.Module:
    """Replace convolutions and linear layers of a model by factorized ones.

    All or nothing: if one of several layers cannot be replaced, or Ctrl-C is pressed, the model is as it was. With
    `on_refusal="skip"` what can be replaced is, and the rest is left dense; `report` says what and why.

    Every layer draws its random start from a numeric seed anew, so it does not matter which others go with it.
    Training mode, dtype, device, memory format, requires_grad and the order of the names are kept. A module that
    stands in several places is replaced in all of them, by one; layers that share their weight and are decomposed
    together are decomposed once and share their factors, an embedding and the head that is tied to it as well.

    Args:
        model: any module. It is left alone unless `inplace`; the new one shares no memory with it.
        layer: a name as in `model.named_modules()` (`""` is the model itself, for a model that is one
            layer), a glob such as `"layer4.*"`, a list of those, or a predicate on name and module.
            Globs and predicates pick the convolutions among what they match, and for a method that takes
            a matrix the linear layers and embeddings too.
        method: a registered name, such as `"cp"`, `"tucker"`, `"tt"` or `"svd"`.
        ratio: the share of each layer's weight parameters to remove, in (0, 1): `ratio=0.9` keeps at most
            a tenth. What was reached is the new layer's `ratio`.
        rank: an exact rank instead: a number for CP and SVD, (out, in) for Tucker, the inner ranks along
            (in, *spatial, out) for TT. Or `"tensorly-torch"` together with a ratio, for the ranks that
            tensorly-torch and the paper would take.
        solver: None for the method's defaults, its options (`CPOptions`, `TuckerOptions`, `TTOptions`,
            `SVDOptions`), or `"tensorly"` for the paper's own.
        inplace: change `model` itself (a model that is itself the layer is returned anew).
        seed: a number or a `torch.Generator`; the global generators are neither read nor moved.
        hooks: what to do with a layer that carries hooks: `"refuse"`, or `"keep"` to carry them over. They then get
            the new layer as their module; a hook that needs a plain convolution is the user's business.
        parametrized: what to do with a layer whose weight or bias is computed (`nn.utils.parametrize`, weight and
            spectral norm of either kind, pruning): `"refuse"`, or `"bake"` to decompose the value of this moment.
        allow_subclasses: whether a subclass of a layer is treated as that layer. Its own forward is lost.
        axes: the arrangement of the spatial axes that a rank is meant for, as in a factorized layer's `axes`; by
            default the method's own.
        whiten: moments of the layers' inputs by name, from `input_moments`: the features, not the weights, are then
            approximated best, and the bias takes over the mean of what is lost. Or from `fisher_factors`: then the
            predictions are. Embeddings have none, and are not whitened, nor is what is tied to them.
        skip: layers to leave as they are, of those that `layer` means. A name or glob means a module with all that is
            in it, so `"head"` and `"encoder.0"` do; it must exist. Or a list of those, or a predicate.
        on_refusal: what to do with a layer that cannot be replaced: `"raise"`, or `"skip"` to leave it, and those that
            share a parameter with it. If nothing is left to be done, as where one name was asked for, it is an
            error all the same.
        executor: where layers are solved side by side: any `concurrent.futures.Executor`, such as
            `tdcompress.study.processes(4)`. Bits are those of a process with as many threads as a worker has. The seed
            must be a number then.
        progress: None shows a bar where tqdm is installed and standard error is a terminal, True in any case, False
            never; a function is called as `progress(done, total, what)` after every layer.

    Returns:
        The model with the layers replaced.

    Raises:
        CompressionError: nothing was matched, a layer cannot be replaced, or the executor broke down; it names the
            layer, what was found, and what to do.

    >>> model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    >>> small = decompose(model, "2", method="tucker", ratio=0.9)
    >>> small(torch.zeros(1, 3, 8, 8)).shape, 0.9 <= small[2].ratio < 0.91
    (torch.Size([1, 64, 8, 8]), True)
    """
    kind, policy = get_method(method), Policy(hooks, parametrized, allow_subclasses)
    options, refused = kind.options.of(solver), Refusals(on_refusal)
    if executor is not None and isinstance(seed, torch.Generator):
        raise CompressionError(
            "seed is a torch.Generator, which the layers draw from one after the other; with executor= give a number."
        )
    check_selector(layer, list(dense_layers(model, kind.takes_linear)))  # None would be all layers
    selected, skipped = without(model, select_layers(model, layer, linear=kind.takes_linear), skip)
    following = {name for _, *others in tied_groups(selected) for name, _ in others}
    problems = {}
    for name, module in selected:
        with refused.of(name):
            check_wrapper(model, name)
            conv = plain(module, policy)
            moments = None if name in following else _of_layer(whiten, name, conv)
            request = Request(options=options, ratio=ratio, rank=rank, axes=axes, whiten=moments, seed=seed)
            problem = Problem(kind, conv, request)
            problem.check()
            problems[name] = problem
    wanted = Replacement(selected, problems, refused, skipped)
    return replaced(model, wanted, inplace=inplace, executor=executor, progress=progress)


def refusals(
    model: nn.Module,
    method: str = "tucker",
    ratio: float | None = None,
    *,
    solver: Solver = None,
    hooks: Hooks = "refuse",
    parametrized: Parametrized = "refuse",
    allow_subclasses: bool = False,
) -> dict[str, str]:
    """Which layers `decompose` would refuse, and why; found without decomposing anything.

    Args:
        model: where to look; it is left alone.
        method: see `decompose`, like the other arguments.
        ratio: the ratio that shall be reached; None for any.
        solver: see `decompose`.
        hooks: see `decompose`.
        parametrized: see `decompose`.
        allow_subclasses: see `decompose`.

    Returns:
        `{layer name: reason}`; what is not in it can be decomposed.

    >>> model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 3))
    >>> for name, reason in refusals(model, "tucker", ratio=0.5).items():
    ...     print(name, reason)
    0 tucker cannot make this layer smaller: rank 1 has 88 parameters, the dense weight 72. Leave it dense or use
    another method.
    >>> small = decompose(model, lambda name, _: name not in refusals(model, "tucker", 0.5), "tucker", 0.5)
    >>> [type(layer).__name__ for layer in small]
    ['Conv2d', 'TuckerConv', 'TuckerConv']
    """
    kind, policy = get_method(method), Policy(hooks, parametrized, allow_subclasses)
    options, candidates = kind.options.of(solver), list(dense_layers(model, kind.takes_linear))
    errors = cut_ties(model, candidates)
    for name, module in candidates:
        try:
            check_wrapper(model, name)
            spec = ConvSpec.of(plain(module, policy))
            check_reachable(kind, spec, ratio, options, taking(spec))
        except CompressionError as error:
            errors.setdefault(name, error)
    return {name: str(errors[name]) for name, _ in candidates if name in errors}


def _of_layer(
    whiten: Mapping[str, InputMoments | FisherFactors] | None, name: str, conv: nn.Module
) -> InputMoments | FisherFactors | None:
    if whiten is None or not reads_features(conv):
        return None
    if name not in whiten:
        raise CompressionError("whiten= has no moments of its inputs; see td.input_moments.")
    return whiten[name]
