"""Every method on real weights: the committed GaripovNet, trained on Fashion-MNIST."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tdcompress as td
from examples.paper.models import GaripovNet
from tdcompress.decompositions import TTOptions, TuckerOptions, cp, tensor_train, tucker
from tdcompress.decompositions.als import Sweep, start
from tdcompress.decompositions.extrapolation import Run
from tests.layers.strategies import error_of, for_kernels

CHECKPOINT = Path(__file__).parents[1] / "examples" / "paper" / "checkpoints" / "garipovnet_fmnist.safetensors"
METHODS = for_kernels()


@pytest.fixture(scope="module")
def model():
    model = GaripovNet(in_channels=1)
    model.load_state_dict(load_file(CHECKPOINT))
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
def test_stronger_compression_loses_more_and_never_exceeds_the_budget(model, method):
    errors = []
    for ratio in (0.85, 0.9, 0.95):
        layer: Any = td.decompose(model, "conv2", method, ratio).conv2
        assert layer.ratio >= ratio
        errors.append(layer.solution.relative_error)
    assert errors == sorted(errors)
    assert errors[1] < 0.7


@pytest.mark.parametrize("method", METHODS)
def test_the_report_is_what_approximation_errors_measures(model, method):
    small: Any = td.decompose(model, "conv2", method, 0.9)
    errors = td.approximation_errors(model, small, metrics=["relative_weights"])
    assert errors["conv2"]["relative_weights"] == pytest.approx(small.conv2.solution.relative_error, rel=1e-4)
    assert small.conv2.solution.seconds > 0
    assert (small.conv2.solution.sensitivity is not None) == (method == "cp")


def test_cp_falls_with_every_accepted_sweep(model):
    kernel = model.conv2.weight.detach()
    run = Run(Sweep(kernel, 1e-4), start("orthogonal", kernel, 27, torch.Generator()))
    before = float("inf")
    for _ in range(60):
        run.advance(1, 0.0)
        assert float(run.loss) <= before
        before = float(run.loss)


@pytest.mark.full
def test_rounding_does_not_end_the_extrapolation(model):
    """In float32 alone the sums of a high rank would look converged above this."""
    kernel = model.conv2.weight.detach()
    single, double = (cp(tensor, 206).solution.relative_error for tensor in (kernel, kernel.double()))
    assert single == pytest.approx(double, rel=5e-3)


def test_more_sweeps_never_lose_more(model):
    kernel = model.conv4.weight.detach()
    hooi = [tucker(kernel, (32, 40), modes=(0, 1), solver=TuckerOptions(max_iter=n, tol=0)) for n in (0, 2, 10)]
    als = [tensor_train(kernel.movedim(0, -1), (32, 40, 36), solver=TTOptions(max_iter=n, tol=0)) for n in (0, 2, 10)]
    for found in (hooi, als):
        errors = [one.solution.relative_error for one in found]
        assert errors[0] >= errors[1] - 1e-7
        assert errors[1] >= errors[2] - 1e-7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_costs_little_beyond_its_own_rounding(model, dtype):
    kernel = model.conv2.weight.detach()
    full, half = cp(kernel, 27).solution, cp(kernel.to(dtype), 27).solution
    assert half.relative_error <= 1.03 * full.relative_error
    assert half.sensitivity is not None
    assert full.sensitivity is not None
    assert half.sensitivity == pytest.approx(full.sensitivity, rel=torch.finfo(dtype).eps)


def test_terms_stay_short_enough_for_bfloat16(model):
    """Without the penalty rounding alone would be half of what this layer puts out."""
    layer: Any = td.decompose(model, "conv2", "cp", 0.75).conv2
    x = torch.randn(2, 64, 12, 12, generator=torch.Generator().manual_seed(0)).relu()
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = layer(x).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_one_joint_spatial_stage_loses_about_the_same_at_equal_rank(model):
    layers = {
        spatial: td.CPConv.from_conv(model.conv2, rank=40, solver=td.CPOptions(spatial=spatial))
        for spatial in ("separable", "joint")
    }
    # Every separable decomposition is a joint one too, but alternating least squares ends in either's local optimum.
    joint, separable = error_of(layers["joint"]), error_of(layers["separable"])
    assert joint == pytest.approx(separable, rel=0.02)
    assert len(layers["joint"]) == len(layers["separable"]) - 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_badly_scaled_kernels_are_ordinary_input(method, scale):
    conv = torch.nn.Conv2d(12, 8, 3, bias=False)
    conv.weight.data *= scale
    layer: Any = td.decompose(conv, "", method, 0.5)
    assert layer.weight.isfinite().all()
    assert 0 <= layer.solution.relative_error < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 6, 1, 1), (8, 6, 1, 5), (8, 6, 7, 7), (8, 1, 3, 3), (1, 6, 3, 3)])
def test_every_shape_of_kernel_is_ordinary_input(method, shape):
    conv = torch.nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    layer: Any = td.decompose(conv, "", method, 0.4)
    assert layer.weight.shape == shape
    assert 0 <= layer.solution.relative_error < 1


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_kernels_are_ordinary_input(method):
    conv = torch.nn.Conv2d(8, 12, 3, bias=False)
    one = torch.randn(12, 1, 1, 1) * torch.randn(1, 8, 1, 1) * torch.randn(1, 1, 3, 3)
    for weight in (one.expand(12, 8, 3, 3), torch.cat([conv.weight[:6]] * 2), conv.weight * 0):
        conv.weight = torch.nn.Parameter(weight.detach().clone())
        layer: Any = td.decompose(conv, "", method, 0.5)
        assert layer.weight.isfinite().all()
        assert layer.solution.relative_error < 0.8
