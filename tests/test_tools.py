"""What PyTorch's tools do with a convolution they do with a factorized one: every method, every kind of layer.

A quick run takes every method with the layer it is for, and every kind of layer with one method, but to ONNX each
method and each kind goes once. A full one takes all pairs. A tool that is slow to get ready gets many layers at once.
"""

import copy
import functools
import io
import pickle
import shutil

import pytest
import torch
import torch._inductor.config as inductor
from torch import nn
from torch.nn.utils import prune

from tdcompress.methods import METHODS
from tests.drawing import each_once, more
from tests.layers.strategies import a_spec, an_input, factorize, kinds, side

USUAL = [(method, "Conv2d") for method in sorted(METHODS)]
OTHERS = [(method, kind) for method in sorted(METHODS) for kind in kinds(method) if kind != "Conv2d"]
every_case = pytest.mark.parametrize(("method", "kind"), [*USUAL, *each_once(OTHERS)])


def by_run(pairs):
    """All that a quick run takes as one list, and lists of what a full one adds, one for each method."""
    quick = [one.values for one in pairs if not one.marks]
    added = [one.values for one in pairs if one.marks]
    groups = [[case for case in added if case[0] == method] for method in dict.fromkeys(method for method, _ in added)]
    return [
        pytest.param(quick, id="quick"),
        *(pytest.param(each, id=each[0][0], marks=pytest.mark.full) for each in groups),
    ]


@functools.cache
def made(method, kind):
    """A layer that was decomposed from a kernel of that very rank, and an input for it.

    The kernel of random numbers that PyTorch starts with has no good CP: its terms nearly cancel, which a large
    `solution.sensitivity` tells, and then eight bits are too few whatever the tool.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        structured = METHODS[method](a_spec(kind, side(method)), 2).to_conv()
    return factorize(structured, method, rank=2).eval(), an_input(structured, torch.float32)


def a_case(method, kind):
    layer, x = made(method, kind)
    return copy.deepcopy(layer), x


def near(one, other, tolerance=1e-5):
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


class Together(nn.Module):
    """Layers side by side, each with an input of its own."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs):
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def together(cases):
    layers, inputs = zip(*(a_case(*case) for case in cases), strict=True)
    return Together(layers), inputs


def differing(names, found, expected, tolerance=1e-5):
    compared = zip(names, found, expected, strict=True)
    return [name for name, one, other in compared if not near(one, other, tolerance)]


@pytest.mark.parametrize("cases", by_run([*(pytest.param(*one) for one in USUAL), *each_once(OTHERS)]))
def test_compiled_without_a_graph_break_and_trained(cases):
    model, inputs = together(cases)
    torch._dynamo.reset()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(*inputs)
    expected = model(*inputs)
    assert differing(cases, found, expected) == []
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, expected = (
        torch.autograd.grad(sum(x.square().sum() for x in outputs), parameters) for outputs in (found, expected)
    )
    assert differing(names, ours, expected, 1e-4) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Skipping serialization")  # the second of torch 2.6
# A stack of convolutions, and one with regroupings between.
@pytest.mark.parametrize("method", ["cp", "blr", *more(*sorted({*METHODS} - {"cp", "blr"}))])
def test_compiled_by_inductor(method, request):
    """In a full run as on any machine; a quick one does not wait for what Inductor compiles to know the processor."""
    quick = {} if request.config.getoption("full") else {"cpp.vec_isa_ok": False}
    layer, x = a_case(method, "Conv2d")
    torch._dynamo.reset()
    with torch.no_grad(), inductor.patch(quick):
        assert near(torch.compile(layer, fullgraph=True)(x), layer(x))


@every_case
def test_exported_for_any_batch(method, kind):
    layer, x = a_case(method, kind)
    torch._dynamo.reset()  # torch 2.6 traces eight models in a process, then no more
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    assert near(program.module()(torch.cat([x, x])), layer(torch.cat([x, x])))


@pytest.mark.parametrize("cases", by_run(each_once([*USUAL, *OTHERS])))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_runtime_agrees(cases):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra dev")
    pytest.importorskip("onnxscript", reason="needs the extra dev")
    if torch.__version__.startswith("2.6."):  # gives a Conv3d without a bias one of no shape, a plain one too
        cases = [(method, kind) for method, kind in cases if not kind.endswith("3d")]
    model, inputs = together(cases)
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    named = zip(session.get_inputs(), inputs, strict=True)
    found = map(torch.from_numpy, session.run(None, {given.name: x.numpy() for given, x in named}))
    assert differing(cases, found, model(*inputs), 1e-4) == []


@pytest.mark.parametrize("cases", by_run([*(pytest.param(*one) for one in USUAL), *each_once(OTHERS)]))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_for_any_batch_and_saved_by_torchscript(cases):
    model, inputs = together(cases)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), file)  # it is checked below
    file.seek(0)
    twice = [torch.cat([x, x]) for x in inputs]
    assert differing(cases, torch.jit.load(file)(*twice), model(*twice)) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_stages_of_convolutions_alone_can_be_scripted():
    model, inputs = together([(method, "Conv2d") for method in ("cp", "tucker", "tt", "svd", "btd")])
    for layer, x in zip(model.layers, inputs, strict=True):
        assert near(torch.jit.script(nn.Sequential(*layer))(x), layer(x))


@every_case
def test_functional_call_and_vmap_over_weights(method, kind):
    layer, x = a_case(method, kind)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    assert near(torch.func.functional_call(layer, dict(other.named_parameters()), (x,)), other(x))
    stacked, _ = torch.func.stack_module_state([layer, other])
    found = torch.func.vmap(lambda values: torch.func.functional_call(layer, values, (x,)))(stacked)
    assert near(found[0], layer(x), 1e-4)
    assert near(found[1], other(x), 1e-4)


@every_case
def test_autocast_computes_in_bfloat16_and_keeps_float32_weights(method, kind):
    layer, x = a_case(method, kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype is torch.bfloat16
    assert (found.float() - layer(x)).norm() < 0.05 * layer(x).norm()
    found.float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}


@every_case
def test_copied_and_pickled(method, kind):
    layer, x = a_case(method, kind)
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert (other.rank, other.axes, other.solution) == (layer.rank, layer.axes, layer.solution)
        assert (other.spec, other.ratio_asked) == (layer.spec, None)


@every_case
def test_pruned(method, kind):
    layer, x = a_case(method, kind)
    for stage in layer.weighted:
        prune.l1_unstructured(stage, "weight", amount=0.5)
    found = layer(x)
    assert not near(found, made(method, kind)[0](x))
    found.sum().backward()
    for stage in layer.weighted:
        prune.remove(stage, "weight")
        assert (stage.weight == 0).float().mean() == pytest.approx(0.5, abs=0.5 / stage.weight.numel())
    assert near(layer(x), found)
    assert near(layer.to_conv()(x), found, 1e-4)


@every_case
def test_weights_only_quantized_to_eight_bits(method, kind):
    layer, x = a_case(method, kind)
    for stage in layer.weighted:
        axis = 1 if getattr(stage, "transposed", False) else 0
        largest = stage.weight.detach().abs().amax([d for d in range(stage.weight.ndim) if d != axis], keepdim=True)
        scale = (largest / 127).clamp(min=1e-12)
        eight_bits = (stage.weight.detach() / scale).round().to(torch.int8)
        with torch.no_grad():
            stage.weight.copy_(eight_bits * scale)
    dense = made(method, kind)[0](x)
    assert 0 < (layer(x) - dense).norm() < 0.05 * dense.norm()


@every_case
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamically_quantized_each_stage_is_what_pytorch_makes_of_it_alone(method, kind):
    quantization = pytest.importorskip("torch.ao.quantization", reason="moved out of this PyTorch")
    dynamic = pytest.importorskip("torch.ao.nn.quantized.dynamic", reason="moved out of this PyTorch")
    layer, x = a_case(method, kind)
    # PyTorch quantizes no embedding dynamically, and does not know our grouped linear layers. Its own transposed
    # convolutions are more than their norm from what they were, and with a stride read what is nowhere written.
    known = {type(stage) for stage in layer.weighted if hasattr(dynamic, type(stage).__name__)}
    classes = {one for one in known if "Transpose" not in one.__name__}
    how = {
        "qconfig_spec": dict.fromkeys(classes, quantization.default_dynamic_qconfig),
        "mapping": {one: getattr(dynamic, one.__name__) for one in classes},
    }
    quantized = quantization.quantize_dynamic(layer, **how)
    alone = [quantization.quantize_dynamic(nn.Sequential(stage), **how) for stage in layer]
    assert sum(type(stage).__module__.startswith("torch.ao") for stage in quantized) == sum(
        type(stage) in classes for stage in layer
    )
    assert torch.equal(quantized(x), nn.Sequential(*alone)(x))
    assert quantized(x).isfinite().all()
