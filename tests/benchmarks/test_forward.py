"""The forward benchmark compares like with like."""

import math
from typing import Any

import pytest
import torch

from tdcompress.decompositions.bridge import tensorly_on_torch
from tests.benchmarks.forward import HOW, PEERS, Forward, _speedups, _times, candidates, on_a_gpu, timed


def parameters(model):
    return sum(p.numel() for name, p in model.named_parameters() if "bias" not in name)


def test_every_candidate_maps_alike_and_peers_have_our_ranks():
    models: Any = candidates(16, 0.5)
    x = torch.randn(2, 16, 6, 6)
    with tensorly_on_torch():
        assert {model(x).shape for model in models.values()} == {(2, 16, 6, 6)}
    assert torch.allclose(models["cp merged"](x), models["cp"](x), atol=1e-5)
    for method, peer in PEERS.items():
        spare = {"cp": models["cp"].ranks[0], "tucker": 9 + 9, "tt": 0}[method]  # its weights, its spatial factors
        assert parameters(models[peer]) == parameters(models[method]) + spare


def test_all_run_in_every_round_and_are_compared_within_it():
    calls = []
    clock = iter(range(1, 100))
    runs = {name: (lambda name=name: calls.append(name)) for name in ("dense", "cp")}
    times = timed(runs, lambda run: (run(), float(next(clock)))[1], rounds=3)
    assert {name: len(values) for name, values in times.items()} == {"dense": 3, "cp": 3}
    assert sorted(calls[-2:]) == ["cp", "dense"]
    assert Forward(8, 4, 0.5, "contiguous", {"dense": [2.0, 30.0, 4.0], "cp": [1.0, 10.0, 4.0]}).speedup("cp") == 2.0


def test_tables_leave_out_what_was_not_run():
    names = ("dense", "cp", "svd", "tt", "tucker", "cp merged")
    compiled = Forward(8, 4, 0.1, "compiled", {name: [1.0, 1.0] for name in names})
    eager = Forward(8, 4, 0.1, "eager", {name: [2.0, 2.0] for name in (*names, *PEERS.values())})
    (_, first), (_, second) = _times([compiled, eager]), _times([eager])
    assert first[0][4:] == ["- → 1"] * 3 + ["1"] * 2
    assert first[1:] == second
    assert [row[2:4] for row in _speedups([compiled])[1]][:2] == [["-", "-"]] * 2
    assert math.isclose(float(_speedups([compiled, eager])[1][-1][2]), 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_table_has_every_setting():
    rows = list(on_a_gpu(quick=True))
    assert len(rows) == 2 * len(HOW)
