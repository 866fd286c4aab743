"""One thread for small work, and the user's number back, whatever happens."""

import threading

import pytest
import torch

from tdcompress.decompositions import cp, svd, tensor_train, tucker
from tdcompress.methods import METHODS
from tdcompress.threads import threads_for

LARGE = 1 << 24


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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
    return [lost for _, lost in kind.curve(kernel[None], [2000, 6000])]


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
