"""tensorly is borrowed, and given back as it was."""

import threading

import numpy as np
import pytest
import tensorly
import torch

from tdcompress.decompositions import cp, tensor_train, tucker


@pytest.mark.parametrize("backend", ["numpy", "pytorch"])
def test_the_users_backend_is_untouched_in_every_thread(backend):
    before = tensorly.get_backend()
    tensorly.set_backend(backend)
    try:
        cp(torch.randn(4, 3, 2), 2, solver="tensorly")
        tucker(torch.randn(4, 3, 2), (2, 2, 2), solver="tensorly")
        tensor_train(torch.randn(4, 3, 2), (2, 2), solver="tensorly")
        seen = []
        thread = threading.Thread(target=lambda: seen.append(tensorly.get_backend()))
        thread.start()
        thread.join()
        assert [tensorly.get_backend(), *seen] == [backend, backend]
    finally:
        tensorly.set_backend(before)


def test_it_is_given_back_when_the_solver_fails(monkeypatch):
    before = tensorly.get_backend()
    monkeypatch.setattr("tensorly.decomposition.tensor_train", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tensor_train(torch.randn(4, 3, 2), (2, 2), solver="tensorly")
    assert tensorly.get_backend() == before


def test_the_start_is_drawn_from_the_generator_and_numpys_is_left_alone():
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    tensor = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    one, two, other = (
        cp(tensor, 3, solver="tensorly", generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.factors[0], two.factors[0])
    assert not torch.equal(one.factors[0], other.factors[0])
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()
