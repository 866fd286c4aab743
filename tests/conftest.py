"""What tests of several folders need: a number of threads, processes that work for them, and a Dask cluster.

PyTorch and the package are imported by what needs them: the process that only hands tests out loads this file, too.
"""

import os
import subprocess
import sys

import pytest


def _threads_now():
    torch = sys.modules.get("torch")
    return torch and torch.get_num_threads()


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    """What one test leaves behind makes all that follow slow: two workers of two threads each, on two cores."""
    before = _threads_now()
    yield
    assert before in (None, _threads_now()), "a test has changed torch's number of threads"


@pytest.fixture
def one_thread():
    """As many as a worker has, since sums in another order have other last bits; and enough for small networks."""
    from tdcompress.threads import on_threads

    with on_threads(1):
        yield


@pytest.fixture
def two_threads():
    from tdcompress.threads import on_threads

    with on_threads(2):
        yield


@pytest.fixture(scope="session")
def pool():
    """Two workers for all tests that do not kill any."""
    from tdcompress.study import processes

    with processes(2) as executor:
        yield executor


@pytest.fixture
def dask():
    """A client of a scheduler in this process and of two workers of one thread each, on the loopback."""
    distributed = pytest.importorskip("distributed")
    path = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    quiet, started = subprocess.DEVNULL, []
    with distributed.LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster:
        try:
            for _ in range(2):
                worker = [*command, cluster.scheduler_address]
                started.append(subprocess.Popen(worker, stdout=quiet, stderr=quiet, env=environment))
            with distributed.Client(cluster) as client:
                client.wait_for_workers(2)
                yield client
        finally:
            for process in started:  # workers take leave of the scheduler
                process.terminate()
            for process in started:
                process.wait()
