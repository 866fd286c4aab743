"""tensorly-torch's layers and ours, beside each other: the same dense weights, the same outputs."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorly
import torch
from torch import nn

import tdcompress as td
from tdcompress import decompositions
from tdcompress.decompositions.bridge import tensorly_torch

tltorch = tensorly_torch()
EXACT = 1e-10
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*makes the layer larger", "ignore:Determining the tt-rank for the trivial case of a matrix"
)
SIZES = [(3,), (1,), (3, 2), (1, 3), (1, 1), (2, 3, 2), (3, 1, 2)]
NAMES: dict[str, type[td.FactorizedConv]] = {"cp": td.CPConv, "tucker": td.TuckerConv, "tt": td.TTConv}


@pytest.fixture(autouse=True)
def on_torch():
    """The backend that these layers run on, for the process, as tensorly-torch's import has it."""
    before = tensorly.get_backend()
    tensorly.set_backend("pytorch")
    yield
    tensorly.set_backend(before)


def factorized(size, name, rank="same", bias=True, **how):
    """A layer of theirs with weights that are all of about 1, in double precision."""
    torch.manual_seed(0)
    dense = {"implementation": "reconstructed"} if name == "dense" else {}
    layer = tltorch.FactorizedConv(6, 8, size, factorization=name, rank=rank, bias=bias, **{**dense, **how}).double()
    return drawn(layer)


def drawn(layer):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in layer.parameters():
            one.normal_(generator=generator)
    return layer


def inputs(layer):
    return torch.randn(2, layer.in_channels, *(7 + axis for axis in range(len(layer.kernel_size))), dtype=torch.float64)


def kernel_of(theirs):
    dense = theirs.weight.to_tensor()
    return (dense.movedim(-1, 0) if theirs.weight.name == "TT" else dense).detach()


def near(one, other):
    return float((one - other).detach().norm()) <= EXACT * float(other.detach().norm())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", ["same", 0.3])
def test_a_convolution_of_theirs_does_the_same_here_and_comes_back(size, name, rank):
    for how in ({}, {"padding": 1, "stride": 2, "bias": False}, {"dilation": 2, "padding": 2}):
        theirs = factorized(size, name, rank, **how)
        ours = td.from_tltorch(theirs)
        assert type(ours) is NAMES[name]
        assert near(ours.weight, kernel_of(theirs))
        x = inputs(theirs)
        assert near(ours(x), theirs(x))
        back = td.to_tltorch(ours)
        assert type(back) is tltorch.FactorizedConv
        assert type(back.weight) is type(theirs.weight)
        assert near(kernel_of(back), kernel_of(theirs))
        assert near(back(x), theirs(x))


@pytest.mark.parametrize("size", [(3, 2), (2, 3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_strides_paddings_and_dilations_may_differ_by_axis(size, name):
    along = [(1, 2, 3)[: len(size)], (2, 1, 0)[: len(size)], (2, 1, 1)[: len(size)]]
    theirs = factorized(size, name, 0.4, stride=along[0], padding=along[1], dilation=along[2])
    ours = td.from_tltorch(theirs)
    assert [ours.stride, ours.padding, ours.dilation] == along
    x = inputs(theirs)
    assert near(ours(x), theirs(x))
    assert near(td.to_tltorch(ours)(x), theirs(x))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_layer_of_ours_does_the_same_there_and_comes_back(conv, method, rank):
    dense = conv(6, 8, 3, stride=2, padding=1, dtype=torch.float64)
    entries = {"cp": 1, "tucker": 2, "tt": dense.weight.ndim - 1}[method]
    axes = tuple((axis,) for axis in range(dense.weight.ndim - 2))
    ours = NAMES[method].from_conv(dense, rank=[rank] * entries, axes=axes)
    x = inputs(ours)
    for implementation in ("factorized", "reconstructed", "mobilenet"):
        theirs = td.to_tltorch(ours, implementation=implementation)
        assert near(theirs(x), ours(x))
    back = td.from_tltorch(theirs)
    assert back.spec == ours.spec
    assert back.ranks == ours.ranks
    for one, other in zip(back.parameters(), ours.parameters(), strict=True):
        assert near(one, other)


@pytest.mark.parametrize(("padding", "dilation"), [("same", 1), ("same", 2), ("valid", 2)])
def test_words_for_paddings_become_numbers_where_they_can(padding, dilation):
    ours = td.CPConv.from_conv(nn.Conv2d(6, 8, 3, padding=padding, dilation=dilation, dtype=torch.float64), rank=4)
    x = inputs(ours)
    assert near(td.to_tltorch(ours)(x), ours(x))


def test_another_padding_mode_without_padding_is_no_obstacle():
    ours = td.CPConv.from_conv(nn.Conv2d(6, 8, 3, padding_mode="reflect", dtype=torch.float64), rank=4)
    x = inputs(ours)
    assert near(td.to_tltorch(ours)(x), ours(x))


@pytest.mark.parametrize("name", ["cp", "tucker"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_whose_sides_are_not_reshaped_is_an_svd(name, bias):
    theirs = drawn(tltorch.FactorizedLinear((6,), (8,), bias=bias, factorization=name, rank=0.7).double())
    ours = td.from_tltorch(theirs)
    assert type(ours) is td.SVDConv
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assert near(ours.weight, theirs.weight.to_matrix())
    assert near(ours(x), theirs(x))
    back = td.to_tltorch(ours)
    assert type(back) is tltorch.FactorizedLinear
    assert near(back(x), theirs(x))
    assert (back.bias is not None) == bias


@pytest.mark.parametrize("implementation", ["factorized", "reconstructed", "mobilenet"])
def test_an_svd_of_a_linear_layer_is_a_cp_there(implementation):
    ours = td.SVDConv.from_conv(nn.Linear(6, 8, dtype=torch.float64), rank=3)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert near(td.to_tltorch(ours, implementation=implementation)(x), ours(x))


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("blocktt", ((2, 3), (4, 2))),
        ("blocktt", ((3, 2, 2), (2, 1, 4))),
        ("blocktt", ((2, 2, 3, 1), (2, 2, 1, 2))),
        ("cp", ((2, 3), (4, 2))),
        ("cp", ((3, 2, 2), (2, 1, 4))),
        ("tucker", ((2, 3), (4, 2))),
    ],
)
@pytest.mark.parametrize("rank", ["same", 0.4])
def test_a_linear_layer_with_reshaped_sides_is_a_tensor_train_matrix(name, sides, rank):
    theirs = drawn(tltorch.FactorizedLinear(*sides, factorization=name, rank=rank).double())
    ours = td.from_tltorch(theirs)
    assert type(ours) is td.TTMConv
    assert ours.axes == (sides[1], sides[0], (0, 0))
    x = torch.randn(2, 3, theirs.in_features, dtype=torch.float64)
    assert near(ours.weight, theirs.weight.to_matrix())
    assert near(ours(x), theirs(x))
    back: Any = td.to_tltorch(ours)
    assert type(back.weight) is tltorch.BlockTT
    assert near(back.weight.to_matrix(), theirs.weight.to_matrix())
    assert near(back(x), theirs(x))
    again = td.from_tltorch(back)
    assert again.ranks == ours.ranks
    assert all(near(one, other) for one, other in zip(again.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("method", ["kronecker", "ttm"])
@pytest.mark.parametrize("linear", [(6, 8), (24, 60), (60, 24)])
@pytest.mark.parametrize("implementation", ["factorized", "reconstructed"])
def test_a_matrix_that_is_read_through_a_grid_is_a_blocktt_there(method, linear, implementation):
    dense = nn.Linear(linear[0], linear[1], dtype=torch.float64)
    ours: Any = td.decompose(dense, "", method=method, rank=2 if method == "kronecker" else (2, 2))
    theirs = td.to_tltorch(ours, implementation=implementation)
    x = torch.randn(5, linear[0], dtype=torch.float64)
    assert near(theirs(x), ours(x))
    assert near(td.from_tltorch(theirs)(x), ours(x))
    assert set(theirs.state_dict()) == {"bias", *(f"weight.factors.factor_{n}" for n in range(len(ours.axes[0])))}


def test_what_of_a_blocktt_is_trained_is_kept():
    theirs = tltorch.FactorizedLinear((2, 3), (4, 2), factorization="blocktt", rank=[1, 3, 1])
    theirs.weight.factors[0].requires_grad_(False)
    ours: Any = td.from_tltorch(theirs)
    assert [stage.weight.requires_grad for stage in ours.weighted].count(False) == 1
    back: Any = td.to_tltorch(ours)
    assert [one.requires_grad for one in back.weight.factors] == [False, True]


@pytest.mark.parametrize(
    "build",
    [
        lambda: tltorch.FactorizedTensor.new((5, 4, 3), rank=6, factorization="cp"),
        lambda: tltorch.FactorizedTensor.new((5, 4, 3), rank=(3, 4, 2), factorization="tucker"),
        lambda: tltorch.FactorizedTensor.new((5, 4, 3), rank=(1, 3, 2, 1), factorization="tt"),
        lambda: tltorch.TensorizedTensor.new(((5, 2), (4, 3)), rank=(1, 3, 1), factorization="blocktt"),
    ],
)
def test_a_tensor_alone_is_a_decomposition_and_comes_back(build):
    theirs = drawn(build().double())
    ours = td.from_factorized_tensor(theirs)
    matrix = theirs.to_matrix() if isinstance(theirs, tltorch.BlockTT) else theirs.to_tensor()
    assert near(ours.to_dense(), matrix)
    assert math.isnan(ours.solution.relative_error)
    back = td.to_factorized_tensor(ours)
    assert type(back) is type(theirs)
    assert near(back.to_tensor(), theirs.to_tensor())
    assert tuple(np.atleast_1d(back.rank)) == tuple(np.atleast_1d(theirs.rank))
    assert all(isinstance(one, nn.Parameter) for one in back.parameters())
    pointers = {one.data_ptr() for one in theirs.parameters()}
    assert not pointers & {one.data_ptr() for one in back.parameters()}


def test_a_tensor_that_comes_over_is_as_the_solvers_here_give_it():
    theirs = drawn(tltorch.FactorizedTensor.new((5, 4, 3), rank=6, factorization="cp").double())
    ours: Any = td.from_factorized_tensor(theirs)
    assert (ours.weights >= 0).all()
    assert all(torch.allclose(factor.norm(dim=0), torch.ones(6, dtype=torch.float64)) for factor in ours.factors)
    theirs = drawn(tltorch.FactorizedTensor.new((5, 4, 3), rank=(3, 4, 2), factorization="tucker").double())
    ours = td.from_factorized_tensor(theirs)
    for factor in ours.factors.values():
        assert torch.allclose(factor.mT @ factor, torch.eye(factor.shape[1], dtype=torch.float64))


@pytest.mark.parametrize(
    "solve",
    [
        lambda tensor: decompositions.cp(tensor, 3),
        lambda tensor: decompositions.tucker(tensor, (3, 2), modes=(0, 2)),
        lambda tensor: decompositions.tensor_train(tensor, (3, 2)),
        lambda tensor: decompositions.ttm(tensor.flatten(1), (2,), ((2, 3), (4, 5))),
    ],
)
def test_a_decomposition_of_ours_is_a_tensor_there(solve):
    ours = solve(torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    theirs = td.to_factorized_tensor(ours)
    assert near(theirs.to_matrix() if isinstance(theirs, tltorch.BlockTT) else theirs.to_tensor(), ours.to_dense())
    assert near(td.from_factorized_tensor(theirs).to_dense(), ours.to_dense())


def test_tensors_without_a_counterpart_are_refused():
    for tensor, reason in [
        (tltorch.FactorizedTensor.new((4, 3), rank=2, factorization="complexcp"), "are real; CPTensor, TuckerTensor"),
        (tltorch.TensorizedTensor.new(((4, 2), (3, 2)), rank=2, factorization="cp"), "as the weight of a layer"),
        (torch.ones(3, 4), "Tensor has no counterpart; CPTensor"),
    ]:
        with pytest.raises(td.CompressionError, match=reason):
            td.from_factorized_tensor(tensor)
    matrix = torch.randn(6, 8, dtype=torch.float64)
    shape = decompositions.Reshape((2, 3), (4, 2), strided_columns=True)
    with pytest.raises(td.CompressionError, match="counts fastest"):
        td.to_factorized_tensor(decompositions.ttm(matrix, (2,), shape))
    with pytest.raises(td.CompressionError, match="no class for a SVDecomposition"):
        td.to_factorized_tensor(decompositions.svd(matrix, 2))  # type: ignore[arg-type]


def test_a_grid_whose_columns_are_strided_has_no_counterpart():
    ours = td.decompose(nn.Linear(8, 6), "", method="ttm", rank=(2,), axes=((2, 3), (4, 2), (0, 1)))
    with pytest.raises(td.CompressionError, match="counts fastest"):
        td.to_tltorch(ours)


def test_an_svd_of_patches_is_a_tucker_there():
    ours = td.SVDConv.from_conv(nn.Conv2d(6, 8, 3, stride=2, dtype=torch.float64), rank=3)
    theirs: Any = td.to_tltorch(ours)
    x = inputs(ours)
    assert theirs.weight.rank == (3, 6, 3, 3)
    assert near(theirs(x), ours(x))


def test_dense_ones_become_pytorchs_own():
    theirs = factorized((3, 2), "dense", stride=2)
    ours = td.from_tltorch(theirs)
    assert type(ours) is nn.Conv2d
    x = inputs(theirs)
    assert near(ours(x), theirs(x))
    theirs = drawn(tltorch.FactorizedLinear((2, 3), (4, 2), factorization="dense").double())
    ours = td.from_tltorch(theirs)
    assert type(ours) is nn.Linear
    x = torch.randn(5, 6, dtype=torch.float64)
    assert near(ours(x), theirs(x))


def test_what_the_library_decomposes_for_a_layer_of_ours_is_its_tensor():
    conv = nn.Conv2d(6, 8, 3, dtype=torch.float64)
    tensor = tltorch.FactorizedTensor.from_tensor(conv.weight.detach(), rank=0.5, factorization="tucker")
    assert near(td.TuckerConv.from_tensorly(tensor, like=conv).weight, tensor.to_tensor())


def test_training_mode_dtype_and_what_is_trained_are_kept():
    theirs = factorized((3, 3), "tt", 0.3).half().eval()
    theirs.weight.factors[1].requires_grad_(False)
    ours: Any = td.from_tltorch(theirs)
    assert not ours.training
    assert {one.dtype for one in ours.parameters()} == {torch.float16}
    assert [stage.weight.requires_grad for stage in ours] == [True, False, True, True]
    back: Any = td.to_tltorch(ours)
    assert not back.training
    assert [factor.requires_grad for factor in back.weight.factors] == [True, False, True, True]
    assert back.weight.factors[0].dtype == back.bias.dtype == torch.float16


def test_what_theirs_have_beside_our_factors_is_not_trained():
    trained = {name for name, one in td.to_tltorch(tucker()).named_parameters() if one.requires_grad}
    assert trained == {"bias", "weight.core", "weight.factors.factor_0", "weight.factors.factor_1"}
    cp = td.CPConv.from_conv(nn.Conv2d(6, 8, 3), rank=4)
    assert not td.to_tltorch(cp).get_parameter("weight.weights").requires_grad


def tucker(*arguments, **how):
    return td.TuckerConv.from_conv(nn.Conv2d(*(arguments or (6, 8, 3)), **how), rank=2)


@pytest.mark.parametrize("name", NAMES)
def test_their_layer_has_the_state_that_theirs_have(name):
    theirs = factorized((3, 3), name, 0.3)
    back: Any = td.to_tltorch(td.from_tltorch(theirs))
    assert set(back.state_dict()) == set(theirs.state_dict())
    assert back.factorization.lower() == theirs.factorization
    assert back.state_dict()["bias"].equal(theirs.state_dict()["bias"])


def test_nothing_is_shared_with_what_is_given():
    theirs = factorized((3, 3), "cp")
    ours = td.from_tltorch(theirs)
    back: Any = td.to_tltorch(ours)
    before = back.weight.to_tensor().clone(), back.bias.detach().clone()
    for one in (*theirs.parameters(), *ours.parameters()):
        one.data.zero_()
    assert torch.equal(back.weight.to_tensor(), before[0])
    assert torch.equal(back.bias, before[1])


# --- whole models -----------------------------------------------------------------------------------------


def model():
    """Theirs between others, one of them in two places."""
    first = factorized((3, 3), "tucker", 0.5, padding=1)
    twice = drawn(tltorch.FactorizedConv(8, 8, (3, 3), padding=1, factorization="cp", rank=5).double())
    head = drawn(tltorch.FactorizedLinear((8,), (5,), rank=3).double())
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, nn.ReLU(), twice, nn.Sequential(twice, nn.BatchNorm2d(8).double()), pooled, head)


@pytest.mark.parametrize("inplace", [False, True])
def test_all_layers_of_a_model_are_replaced_there_and_back(inplace):
    theirs, x = model(), torch.randn(3, 6, 8, 8, dtype=torch.float64)
    expected = theirs(x)
    ours: Any = td.from_tltorch(theirs, inplace=inplace)
    assert (ours is theirs) == inplace
    assert [type(ours[i]).__name__ for i in (0, 2, 5)] == ["TuckerConv", "CPConv", "SVDConv"]
    assert ours[2] is ours[3][0]
    assert near(ours(x), expected)
    back = td.to_tltorch(ours, inplace=inplace)
    assert (back is ours) == inplace
    assert near(back(x), expected)
    if not inplace:
        assert near(theirs(x), expected)
        assert isinstance(theirs[0], tltorch.FactorizedConv)


def test_all_that_works_on_a_decomposed_model_works_on_one_that_came_over(tmp_path):
    theirs, x = model(), torch.randn(3, 6, 8, 8, dtype=torch.float64)
    ours = td.from_tltorch(theirs)
    assert [one.method for one in td.report(ours).layers] == ["tucker", "cp", "svd"]
    dense = td.restore(ours)
    assert near(dense(x), theirs(x))
    td.save(ours, tmp_path / "ours.safetensors")
    assert near(td.load(tmp_path / "ours.safetensors", into=dense)(x), theirs(x))


def test_skip_leaves_layers_as_they_are():
    theirs, x = model(), torch.randn(3, 6, 8, 8, dtype=torch.float64)
    ours: Any = td.from_tltorch(theirs, skip=["0", "5"])
    assert [type(ours[i]).__module__.partition(".")[0] for i in (0, 2, 5)] == ["tltorch", "tdcompress", "tltorch"]
    assert near(ours(x), theirs(x))
    back: Any = td.to_tltorch(ours, skip=lambda name, module: False)
    assert isinstance(back[2], tltorch.FactorizedConv)


def test_one_that_cannot_be_converted_stops_all_and_is_named():
    theirs = nn.Sequential(
        factorized((3, 3), "cp"), tltorch.FactorizedLinear((2, 3, 1), (4, 2), rank=3), tltorch.TCL((3,), 2)
    )
    message = (
        r"2 of 3 layers cannot be converted; skip= leaves them as they are.\n"
        r"'1': its weight is a CP of a matrix whose sides are reshaped, \(\(4, 2\), \(2, 3, 1\)\)(.|\n)*'2': TCL has no"
    )
    with pytest.raises(td.CompressionError, match=message):
        td.from_tltorch(theirs, inplace=True)
    assert isinstance(theirs[0], tltorch.FactorizedConv)
    with pytest.raises(td.CompressionError, match="layer '2': TCL has no counterpart"):
        td.from_tltorch(theirs, skip=["0", "1"])


def hooked():
    layer = factorized((3, 3), "cp")
    return tltorch.tensor_dropout(layer.weight, p=0.5) and layer


def a_complex_one():
    return tltorch.FactorizedConv(6, 8, (3, 3), factorization="complexcp", dtype=torch.complex64)


def several():
    return tltorch.FactorizedConv(6, 8, (3, 3), n_layers=2)


def a_subclass():
    own = type("Own", (tltorch.FactorizedConv,), {})
    return own(6, 8, (3, 3))


def shared():
    one, two = factorized((3, 3), "cp"), factorized((3, 3), "cp")
    two.weight = one.weight
    return nn.Sequential(one, nn.Sequential(two))


def parametrized():
    layer = factorized((3, 3), "cp")
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    return layer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Conv2d(6, 8, 3), "there is no tensorly-torch layer in the model"),
        (lambda: tltorch.FactorizedLinear((6,), (8,), factorization="blocktt", rank=1), "BlockTT of a matrix"),
        (
            lambda: tltorch.FactorizedConv(6, 8, (3, 3), factorization="complexcp", dtype=torch.complex64),
            "real floating-point",
        ),
        (hooked, "it carries hooks, as tensor dropout"),
        (several, "n_layers=2 at once"),
        (a_subclass, "Own has no counterpart"),
        (shared, "'0': it shares a parameter with '1.0'"),
        (parametrized, "it is parametrized"),
    ],
)
def test_what_has_no_counterpart_here_is_refused(build, message):
    with pytest.raises(td.CompressionError, match=message):
        td.from_tltorch(build())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Conv2d(6, 8, 3), "there is no factorized layer in the model"),
        (lambda: tucker(6, 8, 3, groups=2), "it has 2 groups"),
        (lambda: tucker(6, 8, 3, padding=1, padding_mode="circular"), "padding_mode is 'circular'.*pad before"),
        (lambda: tucker(6, 8, 4, padding="same"), "adds more on one side"),
        (lambda: td.TuckerConv.from_conv(nn.ConvTranspose2d(6, 8, 3), rank=2), "no transposed convolutions"),
        (lambda: td.TRConv.from_conv(nn.Conv2d(6, 8, 3), rank=2), "tensorly-torch has no tensor ring"),
        (lambda: td.SVDConv.from_conv(nn.Embedding(9, 8), rank=2), "it stands for a Embedding"),
        (lambda: td.CPConv.from_conv(nn.Conv2d(6, 8, 3), rank=2).merge_spatial(), r"\(\(0, 1\),\).*split_spatial"),
        (lambda: td.TTConv.from_conv(nn.Conv2d(6, 8, 3), rank=2, axes=((1,), (0,))), r"\(\(1,\), \(0,\)\).*in order"),
        (
            lambda: td.SVDConv.from_conv(nn.Conv2d(6, 8, 3), rank=2, solver=td.SVDOptions(split="spatial")),
            "split between two stages",
        ),
    ],
)
def test_what_theirs_cannot_do_is_refused(build, message):
    with pytest.raises(td.CompressionError, match=message):
        td.to_tltorch(build())


def test_an_unknown_implementation_is_refused():
    with pytest.raises(td.CompressionError, match="factorized, reconstructed, mobilenet, got 'fast'"):
        td.to_tltorch(tucker(), implementation="fast")  # type: ignore[arg-type]


def test_importing_tensorly_torch_moves_no_backend_and_a_layer_that_cannot_run_is_warned_of():
    code = """
import threading, warnings, tensorly, torch, tdcompress as td
tensorly.set_backend("pytorch", local_threadsafe=True)
layer = td.CPConv.from_conv(torch.nn.Conv2d(6, 8, 3), rank=2)
td.to_tltorch(layer)
seen = []
thread = threading.Thread(target=lambda: seen.append(tensorly.get_backend()))
thread.start()
thread.join()
assert [tensorly.get_backend(), *seen] == ["pytorch", "numpy"], seen
tensorly.set_backend("numpy")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    td.to_tltorch(layer)
assert "backend is 'numpy'" in str(caught[0].message) and len(caught) == 1, caught
"""
    escapes = "default:invalid escape sequence:DeprecationWarning"  # in docstrings of old versions of tensorly
    subprocess.run([sys.executable, "-W", "error", "-W", escapes, "-c", code], check=True)
