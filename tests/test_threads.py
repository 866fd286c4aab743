"""One thread for small work, and the user's number back, whatever happens."""

import threading
import time
from typing import ClassVar

import pytest
import torch
from torch import nn

import tdcompress as td
from examples.paper.models import seeded
from tdcompress.decompositions import cp, svd, tensor_train, tucker
from tdcompress.errors import CompressionError
from tdcompress.methods import METHODS
from tdcompress.threads import threads_for
from tdcompress.work import solved

TINY, SMALL, LARGE = 10, 1 << 16, 1 << 24


pytestmark = pytest.mark.usefixtures("two_threads")


def test_small_work_gets_one_thread_and_large_work_the_users():
    with threads_for(1000):
        assert torch.get_num_threads() == 1
    with threads_for(LARGE):
        assert torch.get_num_threads() == 2
        with threads_for(1000):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


def test_the_number_is_back_after_an_error():
    with pytest.raises(ZeroDivisionError), threads_for(1000):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_other_threads_keep_their_number():
    begun, ended, seen = threading.Event(), threading.Event(), []

    def other():
        torch.set_num_threads(2)
        seen.append(torch.get_num_threads())
        begun.set()
        ended.wait()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    with threads_for(1000):
        ended.set()
        thread.join()
    assert seen == [2, 2]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "solve",
    [
        lambda kernel: cp(kernel, 30).factors[0],
        lambda kernel: tucker(kernel, (20, 12), modes=(0, 1)).core,
        lambda kernel: tensor_train(kernel, (20, 9, 3)).cores[1],
        lambda kernel: svd(kernel, 12).left,
        *(lambda kernel, kind=kind: torch.tensor(_lost(kind, kernel)) for kind in METHODS.values()),
    ],
    ids=["cp", "tucker", "tensor train", "svd", *(f"curve of {name}" for name in METHODS)],
)
def test_the_same_bits_for_every_number_of_threads(solve):
    kernel = torch.randn(48, 40, 3, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(solve(kernel))
        assert torch.get_num_threads() == count
    assert torch.equal(*found)


def _lost(kind, kernel):
    if not kind.takes(td.ConvSpec(40, 48, (3, 3), (1, 1), (0, 0), (1, 1))):
        kernel = kernel.reshape(8, 6, 4, 90)  # rows and columns of two cores
    return [lost for _, lost in kind.curve(kernel[None], [2000, 6000], kind.options())]


def test_a_decomposition_runs_in_one_thread_and_gives_the_number_back(monkeypatch):
    seen = []
    real = torch.linalg.qr

    def watched(matrix):
        seen.append(torch.get_num_threads())
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "qr", watched)
    tucker(torch.randn(24, 24, 3, 3), (8, 8), modes=(0, 1))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


class TestSideBySide:
    """Small layers on threads, tiny ones among them in turn, and large ones on all threads behind them."""

    TASKS: ClassVar = {"a": 3, "b": 9, "c": 1, "d": 5}
    SIZES: ClassVar = dict.fromkeys(TASKS, SMALL)

    def test_small_tasks_run_on_threads_of_one_and_large_ones_here(self):
        seen = {}

        def look(task):
            seen[task] = (torch.get_num_threads(), threading.current_thread() is threading.main_thread())
            return task**2

        order: list[str] = []
        sizes = {"a": SMALL, "b": LARGE, "c": TINY, "d": 2 * SMALL}
        found = solved(look, self.TASKS, sizes=sizes, step=order.append)
        assert list(found.items()) == [(name, task**2) for name, task in self.TASKS.items()]
        assert seen == {3: (1, False), 9: (2, True), 1: (1, False), 5: (1, False)}
        assert order == ["a", "c", "d", "b"]
        assert torch.get_num_threads() == 2

    @pytest.mark.parametrize("error", [ValueError, CompressionError, KeyboardInterrupt])
    def test_what_goes_wrong_comes_out_and_the_number_is_back(self, error):
        def wrong(task):
            raise error("it is wrong.")

        with pytest.raises(error, match="it is wrong"):
            solved(wrong, self.TASKS, sizes=self.SIZES)
        assert torch.get_num_threads() == 2

    def test_what_has_not_begun_is_cancelled(self):
        begun = []

        def slow(task):
            begun.append(task)
            time.sleep(0.05)
            if task == 0:
                raise ValueError("it is wrong.")

        tasks = {str(number): number for number in range(40)}
        with pytest.raises(ValueError, match="it is wrong"):
            solved(slow, tasks, sizes=dict.fromkeys(tasks, SMALL))
        time.sleep(0.2)
        assert len(begun) < 20

    def test_refusals_are_noted_by_name(self):
        def odd(task):
            if task % 3 == 0:
                raise CompressionError("three.")
            return task

        refused: dict[str, CompressionError] = {}
        found = solved(odd, self.TASKS, sizes=self.SIZES, refused=refused)
        assert found == {"c": 1, "d": 5}
        assert {name: str(one) for name, one in refused.items()} == {"a": "three.", "b": "three."}

    def test_tiny_ones_take_turns_beside_others(self):
        sizes = {str(number): SMALL if number < 2 else TINY for number in range(8)}
        under_way, most = [0], []

        def look(task):
            if sizes[task] == TINY:
                under_way[0] += 1
                most.append(under_way[0])
                time.sleep(0.01)
                under_way[0] -= 1
            return threading.current_thread()

        found = solved(look, {name: name for name in sizes}, sizes=sizes)
        assert threading.current_thread() not in found.values()
        assert most == [1] * 6

    def test_one_task_or_tiny_ones_or_one_thread_need_no_pool(self):
        def where(task):
            return torch.get_num_threads(), threading.current_thread()

        here = (1, threading.current_thread())
        assert solved(where, {"a": 0}, sizes={"a": SMALL}) == {"a": here}
        assert set(solved(where, self.TASKS, sizes=dict.fromkeys(self.TASKS, TINY)).values()) == {here}
        torch.set_num_threads(1)
        assert set(solved(where, self.TASKS, sizes=self.SIZES).values()) == {here}

    def test_a_model_has_the_same_bits_on_one_and_on_two_threads(self):
        model = seeded(lambda: nn.Sequential(*(nn.Conv2d(size, size + 8, 3) for size in (8, 60, 64))), 0)
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(td.decompose(model, "*", "cp", 0.8, progress=False).state_dict())
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

    def test_layers_that_draw_from_one_generator_take_turns(self):
        model = seeded(lambda: nn.Sequential(*(nn.Conv2d(size, size + 8, 3) for size in (8, 16, 24))), 0)
        solver = td.CPOptions(starts=("random",), max_iter=5)
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            seed = torch.Generator().manual_seed(3)
            found.append(td.decompose(model, "*", "cp", 0.8, solver=solver, seed=seed, progress=False).state_dict())
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
