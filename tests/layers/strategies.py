"""Layers to be factorized, drawn by hypothesis: every kind, small enough to be quick."""

import importlib.util
import warnings

import torch
from hypothesis import strategies as st

import tdcompress as td
from tdcompress.layers.kinds import KINDS
from tdcompress.methods import METHODS

SEEDS = st.integers(0, 1000)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


if importlib.util.find_spec("transformers"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

NAMES = [name for name in KINDS if not name.startswith("transformers.") or importlib.util.find_spec("transformers")]


def axes_of(kind):
    """How many spatial axes a kind of layer has."""
    return int(kind[-2]) if kind.startswith("Conv") else 0


def kinds(method):
    """The names of the kinds that a method takes."""
    return [name for name in NAMES if METHODS[method].takes(a_spec(name, side(method)))]


def side(method):
    """The size of a kernel that a method takes: 1 if it is for matrices."""
    return 3 if METHODS[method].takes(a_spec("Conv2d")) else 1


def error_of(layer: td.FactorizedConv) -> float:
    """What the solver of a layer says that it loses of the weight, relatively."""
    assert layer.solution is not None
    return layer.solution.relative_error


def for_kernels():
    """The methods that take convolutions, not only matrices."""
    return [method for method in sorted(METHODS) if side(method) > 1]


def a_spec(kind, size=3, **how):
    """A layer of this kind with a kernel of this size in every direction, and 16 channels to 12."""
    count, bias = axes_of(kind), kind != "Embedding"
    if not count:
        return td.ConvSpec(16, 12, kind=kind, has_bias=bias, groups=2 if kind == "GroupedLinear" else 1)
    kernel, stride, padding, dilation = ((number,) * count for number in (size, 2, 1, 1))
    groups, transposed = how.pop("groups", 2), "Transpose" in kind
    return td.ConvSpec(16, 12, kernel, stride, padding, dilation, groups, transposed=transposed, **how)


@st.composite
def layers(draw, method, dtypes=(torch.float64,)):
    """Any layer that PyTorch accepts and the method takes, with weights of its own."""
    spec = draw(specs(draw(st.sampled_from(kinds(method))), most=4 if side(method) > 1 else 1))
    return fresh(spec, draw(st.sampled_from(dtypes)), draw(SEEDS))


@st.composite
def specs(draw, kind, most=4):
    """The arguments of a layer of this kind, with a kernel of at most this size in every direction."""
    ndim, transposed = axes_of(kind), "Transpose" in kind
    if ndim == 0:
        inner, out = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        if kind == "Embedding":
            options = draw(st.sampled_from([(), (("padding_idx", inner - 1),), (("sparse", True),)]))
            return td.ConvSpec(inner, out, has_bias=False, kind=kind, options=options)
        has_bias = True if kind == "transformers.Conv1D" else draw(st.booleans())
        groups = draw(st.integers(2, 3)) if kind == "GroupedLinear" else 1
        return td.ConvSpec(groups * inner, groups * out, groups=groups, has_bias=has_bias, kind=kind)

    def along(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(ndim))

    groups, depthwise = draw(st.integers(1, 4)), draw(st.booleans())
    inner, out = (1, draw(st.integers(1, 2))) if depthwise else (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    word = "" if transposed else draw(st.sampled_from(["", "same", "valid"]))
    stride, dilation = along(1, 1) if word == "same" else along(1, 3), along(1, 2)
    limits = [max(pair) - 1 for pair in zip(stride, dilation, strict=True)]  # PyTorch's own, on output_padding
    return td.ConvSpec(
        in_channels=groups * inner,
        out_channels=groups * out,
        kernel_size=along(1, most if ndim < 3 else min(most, 3)),
        stride=stride,
        padding=word or along(0, 2),
        dilation=dilation,
        groups=groups,
        padding_mode="zeros" if transposed else draw(st.sampled_from(PADDING_MODES)),
        has_bias=draw(st.booleans()),
        transposed=transposed,
        output_padding=tuple(draw(st.integers(0, limit)) for limit in limits) if transposed else (),
    )


def fresh(spec, dtype=torch.float64, seed=0):
    """A layer with weights drawn from a seed; the global generators are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build(dtype=torch.float64).to(dtype)


def an_input(layer, dtype=torch.float64, seed=0):
    """Two samples that are large enough for every kernel and padding that is drawn here."""
    spec = td.ConvSpec.of(layer)
    sizes = [7 + axis for axis in range(len(spec.kernel_size))]
    generator = torch.Generator().manual_seed(seed)
    if not spec.adapter.reads_features:
        return torch.randint(spec.in_channels, (2, 9), generator=generator)
    return torch.randn(2, spec.in_channels, *sizes, generator=generator, dtype=torch.float64).to(dtype)


def factorize(layer, method, **how):
    """`from_conv`, at any rank: that a layer may grow by it is no news here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*makes the layer larger", category=UserWarning)
        return METHODS[method].from_conv(layer, **how)


def modes_of(layer, method):
    """What the method's own arrangement of the axes makes of the kernel."""
    spec = td.ConvSpec.of(layer)
    kind = METHODS[method]
    return kind.modes_of(spec, kind.ways(spec, kind.options())[0])


def full_rank(layer, method):
    """The largest rank that is feasible in the method's own arrangement."""
    return METHODS[method].full_rank(modes_of(layer, method))


@st.composite
def ranks(draw, layer, method):
    """A feasible rank; for the tensor train every bond can be filled by what comes before it."""
    limits, modes = full_rank(layer, method), modes_of(layer, method)
    wanted = tuple(draw(st.integers(1, limit)) for limit in limits)
    return METHODS[method].nearest_feasible(modes, wanted)


def parameters_of(layer):
    """How many numbers the stages' weights have together."""
    return sum(stage.weight.numel() for stage in layer.weighted)
