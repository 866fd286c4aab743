"""executor=: the same results wherever layers are solved, and what is said when workers fail."""

import copy
import os
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch import nn

import tdcompress as td
from examples.paper.models import seeded
from tdcompress.parcels import Parcel
from tdcompress.study import processes
from tdcompress.work import solved

pytestmark = pytest.mark.usefixtures("one_thread")


def a_model():
    def network():
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(256, 40)
        )

    model = seeded(network, 0)
    model[0].to(memory_format=torch.channels_last)
    model[1].weight.requires_grad_(False)
    return model.eval()


def same(one, other):
    """Whether two models have the same layers, down to bits, strides and what was said of the solution."""
    facts = []
    for model in (one, other):
        layers = [layer for layer in model.modules() if isinstance(layer, td.FactorizedConv)]
        solutions = [(layer.spec, layer.ranks, layer.axes, layer.ratio_asked, layer.training) for layer in layers]
        said = [one and (one.relative_error, one.sweeps) for one in (layer.solution for layer in layers)]
        parameters = {name: (p.stride(), p.requires_grad, p.dtype) for name, p in model.named_parameters()}
        facts.append((repr(solutions), said, parameters))
    assert facts[0] == facts[1]
    states = one.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def on_all_layers(executor=None, **arguments):
    """A model with every method in it, solved on an executor."""
    model = td.decompose(a_model(), "0", "cp", 0.5, executor=executor, **arguments)
    model = td.decompose(model, "1", "tucker", 0.3, executor=executor, **arguments)
    return td.decompose(model, "*", "svd", 0.5, executor=executor, **arguments)


class TestBits:
    def test_two_processes_give_the_bits_of_one(self, pool):
        assert same(on_all_layers(pool), on_all_layers())

    @pytest.mark.parametrize("method", ["cp", "tt", "tucker"])
    def test_layers_side_by_side(self, pool, method):
        model = nn.Sequential(*(nn.Conv1d(8 * n, 16, 3) for n in (1, 2, 3)))
        assert same(td.decompose(model, "*", method, 0.4, executor=pool), td.decompose(model, "*", method, 0.4))

    def test_whitened_layers(self, pool):
        model = a_model()
        moments = td.input_moments(model, torch.randn(8, 3, 8, 8), progress=False)
        there = td.decompose(model, "*", "svd", 0.5, whiten=moments, executor=pool)
        assert same(there, td.decompose(model, "*", "svd", 0.5, whiten=moments))

    @pytest.mark.parametrize("kind", [nn.Linear(64, 48).bfloat16(), nn.Embedding(90, 20, padding_idx=0)])
    def test_other_types_and_kinds(self, pool, kind):
        model = nn.Sequential(kind)
        assert same(td.decompose(model, "0", "svd", 0.5, executor=pool), td.decompose(model, "0", "svd", 0.5))

    def test_threads_give_the_bits_of_one(self):
        with ThreadPoolExecutor(2) as threads:
            assert same(on_all_layers(threads), on_all_layers())

    def test_tied_layers_stay_tied(self, pool):
        model = nn.Sequential(nn.Embedding(60, 20), nn.Linear(20, 60))
        model[1].weight = model[0].weight
        small: Any = td.decompose(model, "*", "svd", 0.4, executor=pool)
        assert small[1][1].weight is small[0][0].weight
        assert same(small, td.decompose(model, "*", "svd", 0.4))

    def test_the_models_memory_is_not_moved(self, pool):
        model = a_model()
        places = [p.data_ptr() for p in model.parameters()]
        small = td.decompose(model, "*", "svd", 0.5, executor=pool)
        assert [p.data_ptr() for p in model.parameters()] == places
        assert not any(p.is_shared() for p in (*model.parameters(), *small.parameters()))

    def test_progress_is_in_the_order_of_the_layers(self, pool):
        calls = []
        td.decompose(a_model(), "*", "svd", 0.5, executor=pool, progress=lambda *call: calls.append(call))
        assert calls == [(1, 3, "decompose: 0"), (2, 3, "decompose: 1"), (3, 3, "decompose: 3")]


def test_a_view_is_sent_without_the_rest_of_its_memory():
    whole = torch.randn(1000, 1000)
    (constructor, arguments) = Parcel({"view": nn.Parameter(whole[3:5, :7].T)}).__reduce__()
    assert len(arguments[0]) < 5000
    found = constructor(*arguments).content["view"]
    assert torch.equal(found, whole[3:5, :7].T)
    assert isinstance(found, nn.Parameter)


# --- what goes wrong ------------------------------------------------------------------------------------


def late_or_wrong(task):
    """The later the task, the sooner it is done; the odd ones are refused."""
    time.sleep(0.02 * (5 - task))
    if task % 2:
        raise td.CompressionError(f"{task} is odd.")
    return task


def dies(task):
    os._exit(1)


def has_a_bug(task):
    return 1 / task


class TestFailures:
    TASKS = {str(task): task for task in range(5)}  # noqa: RUF012 (nobody changes it)

    def test_the_first_refusal_in_order_is_raised(self, pool):
        for executor in (None, pool):
            with pytest.raises(td.CompressionError, match=r"^layer '1': 1 is odd\.$"):
                solved(late_or_wrong, self.TASKS, executor=executor)

    def test_refusals_are_noted_where_it_is_asked_for(self, pool):
        for executor in (None, pool):
            refused: dict[str, td.CompressionError] = {}
            found = solved(late_or_wrong, self.TASKS, executor=executor, refused=refused)
            assert found == {"0": 0, "2": 2, "4": 4}
            assert {name: str(error) for name, error in refused.items()} == {"1": "1 is odd.", "3": "3 is odd."}

    def test_other_errors_come_as_they_are(self, pool):
        for executor in (None, pool):
            with pytest.raises(ZeroDivisionError):
                solved(has_a_bug, self.TASKS, executor=executor)

    @pytest.mark.kills
    def test_a_worker_that_dies_is_reported_and_the_model_is_as_it_was(self, monkeypatch):
        model = a_model()
        before = copy.deepcopy(model.state_dict())
        with processes(1) as mortal:
            message = r"the ProcessPoolExecutor broke down .* nothing was changed.*lack memory.*with fewer workers"
            with pytest.raises(td.CompressionError, match=f"^layer '0': {message}"):
                solved(dies, self.TASKS, executor=mortal, refused={})
            with pytest.raises(td.CompressionError, match=message):  # it is broken for good
                td.decompose(model, "*", "svd", 0.5, executor=mortal, on_refusal="skip", inplace=True)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_an_executor_that_was_shut_down(self):
        with ThreadPoolExecutor(1) as threads:
            pass
        with pytest.raises(td.CompressionError, match=r"the ThreadPoolExecutor broke down .*after shutdown"):
            td.decompose(a_model(), "*", "svd", 0.5, executor=threads)

    def test_what_cannot_be_sent(self, pool):
        with pytest.raises(td.CompressionError, match=r"layer '0': it cannot be sent to another process .*top level"):
            solved(lambda task: task, self.TASKS, executor=pool)

    def test_a_forked_pool_and_no_pool(self):
        with (
            ProcessPoolExecutor(1, mp_context=get_context("fork")) as forked,
            pytest.raises(td.CompressionError, match=r"a forked PyTorch may hang.*processes\(workers\)"),
        ):
            td.decompose(a_model(), "*", "svd", 0.5, executor=forked)
        with pytest.raises(td.CompressionError, match=r"executor must be a concurrent.futures.Executor or None, got a"):
            td.decompose(a_model(), "*", "svd", 0.5, executor=2)  # type: ignore[arg-type]

    def test_a_generator_is_drawn_from_in_turn(self, pool):
        generator = torch.Generator().manual_seed(3)
        before = generator.get_state()
        with pytest.raises(td.CompressionError, match=r"seed is a torch.Generator.*with executor= give a number"):
            td.decompose(a_model(), "*", "svd", 0.5, executor=pool, seed=generator)
        assert torch.equal(generator.get_state(), before)

    def test_growth_is_warned_of_here(self, pool):
        with ThreadPoolExecutor(1) as threads:
            for executor in (None, threads, pool):
                with pytest.warns(UserWarning, match="layer '0': svd rank 12 makes the layer larger") as caught:
                    td.decompose(a_model(), "0", "svd", rank=12, executor=executor)
                assert [one.filename for one in caught] == [__file__]


class Waiting(Executor):
    """An executor that does the first task at once, and the others never."""

    def __init__(self):
        self.futures = []

    def submit(self, function, /, *arguments, **how):
        self.futures.append(Future())
        if len(self.futures) == 1:
            self.futures[0].set_result(function(*arguments, **how))
        return self.futures[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_has_not_begun_is_cancelled(error):
    executor, model = Waiting(), a_model()
    modules = list(model.modules())

    def stop(*call):
        raise error

    with pytest.raises(error):
        td.decompose(model, "*", "svd", 0.5, executor=executor, progress=stop, inplace=True)
    assert [future.cancelled() for future in executor.futures] == [False, True, True]
    assert list(model.modules()) == modules


@pytest.mark.full  # a quick run has tests/study/test_executors.py
def test_dask_with_two_workers(dask):
    assert same(on_all_layers(dask.get_executor()), on_all_layers())
    with pytest.raises(td.CompressionError, match=r"^layer '1': 1 is odd\.$"):
        solved(late_or_wrong, TestFailures.TASKS, executor=dask.get_executor())
