import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import pandas as pd
import pytest
import torch

import tdcompress as td
from tdcompress.errors import CompressionError
from tdcompress.study import processes, workers
from tests.benchmarks.study import killed_and_resumed
from tests.study.functions import Counted, deadly, deadly_at_first, deadly_once, finetune, study
from tests.study.test_run import RANDOM, same


def loads(folder):
    """How often each process has unpacked the study."""
    return pd.Series([file.name.split("-")[0] for file in folder.iterdir()]).value_counts()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "files"
    path.mkdir()
    return path


class TestProcesses:
    def test_the_same_table_as_in_this_process(self, tmp_path, pool):
        whole = study(finetune=finetune, methods=RANDOM)
        here = whole.run(tmp_path / "here.sqlite", progress=False)
        same(whole.run(tmp_path / "there.sqlite", pool, progress=False), here)

    def test_weights_travel_once_a_worker(self, store, pool, folder):
        frame = study(evaluate=Counted(folder), methods=RANDOM).run(store, pool, progress=False)
        assert len(frame) == 16
        assert loads(folder).tolist() == [1] * len(loads(folder))
        assert os.getpid() not in loads(folder)

    def test_workers_have_one_thread_and_leave_ctrl_c_to_the_driver(self, pool):
        assert pool.submit(torch.get_num_threads).result() == 1
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN

    @pytest.mark.full
    def test_workers_have_as_many_threads_as_they_are_told(self):
        with processes(1, threads=2) as two:
            assert two.submit(torch.get_num_threads).result() == 2

    def test_nothing_is_left_beside_the_store(self, store, pool):
        study(layers="3").run(store, pool, progress=False)
        assert {file.name for file in store.parent.iterdir()} == {"study.sqlite", "study.sqlite-driver"}

    @pytest.mark.parametrize("part", ["evaluate", "finetune", "data"])
    def test_what_cannot_be_sent_is_named(self, store, pool, part):
        change = {"data": [torch.zeros(1, 3, 5, 5), (lambda: 0)]} if part == "data" else {part: lambda *_: {"a": 1.0}}
        with pytest.raises(CompressionError, match=f"^{part} cannot be sent to another process .*top level"):
            study(**change).run(store, pool, progress=False)

    def test_a_forked_pool_is_refused(self, store):
        with (
            ProcessPoolExecutor(1, mp_context=get_context("fork")) as forked,
            pytest.raises(CompressionError, match=r"a forked PyTorch may hang.*processes\(workers\)"),
        ):
            study().run(store, forked, progress=False)

    def test_a_bad_evaluation_is_refused_before_the_first_trial(self, store, pool):
        with pytest.raises(CompressionError, match="evaluate must return a dict"):
            study(evaluate=list).run(store, pool, progress=False)

    def test_a_method_of_the_user_s_goes_along(self, store, pool):
        td.register_method("cp-of-mine")(OfMine)
        try:
            frame = study(methods=["cp-of-mine"], layers="3").run(store, pool, progress=False)
        finally:
            td.methods.METHODS.pop("cp-of-mine")
        assert len(frame) == 4


class OfMine(td.CPConv):
    method = "cp-of-mine"


@pytest.mark.kills
class TestDeath:
    def test_a_trial_that_kills_its_worker_fails_alone(self, store):
        mortal = study(evaluate=partial(deadly, layer="3"), methods=["tucker"], ratios=(0.5,))
        with processes(2) as executor, pytest.warns(UserWarning, match=r"2 trials failed.*The worker died"):
            frame = mortal.run(store, executor, progress=False)
        assert set(frame["layer"]) == {"0"}
        assert len(frame) == 2
        assert mortal.failures(store)["traceback"].str.contains("out of memory").all()

    @pytest.mark.full
    def test_a_worker_that_is_killed_once_costs_nothing(self, store, folder):
        mortal = study(evaluate=partial(deadly_once, file=str(folder / "dead")))
        with processes(2) as executor:
            assert len(mortal.run(store, executor, progress=False)) == 24
        assert (folder / "dead").exists()

    @pytest.mark.full
    def test_a_worker_that_is_killed_before_the_first_trial_costs_nothing(self, store, folder):
        mortal = study(layers="3", evaluate=partial(deadly_at_first, file=str(folder / "dead")))
        with processes(2) as executor:
            assert len(mortal.run(store, executor, progress=False)) == 12
        assert (folder / "dead").exists()

    def test_workers_that_cannot_start_are_no_failed_trials(self, store):
        executor = ProcessPoolExecutor(1, get_context("spawn"), initializer=os._exit, initargs=(1,))
        with executor, pytest.raises(CompressionError, match=r"workers die before the first trial.*__main__"):
            study().run(store, executor, progress=False)

    @pytest.mark.full
    def test_workers_end_with_a_driver_that_was_killed(self, tmp_path):
        code = """if __name__ == "__main__":
            import os, signal
            from tdcompress.study import processes
            executor = processes(1)
            print(executor.submit(os.getpid).result(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)"""
        script = tmp_path / "script.py"
        script.write_text(code)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        killed = subprocess.run([sys.executable, script], capture_output=True, check=False, env=environment)
        worker = int(killed.stdout)
        for _ in range(200):
            if not running(worker):
                return
            time.sleep(0.05)
        pytest.fail("the worker outlived its driver")


def running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; where nobody collects it, it stays in the list.
    with open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


class Elsewhere(ThreadPoolExecutor):
    """An executor whose workers see no file of the driver's, as on another machine."""

    def submit(self, fn, /, *arguments, **how):
        reference, *others = arguments
        away = workers._JobReference(reference.name, "/nowhere", reference.packed, reference.attempt)
        return super().submit(fn, away, *others, **how)


class TestElsewhere:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch):
        monkeypatch.setattr(workers, "_measurers", {})

    def test_a_worker_without_the_file_is_sent_the_study_once(self, store, folder):
        with Elsewhere(1) as executor:
            frame = study(evaluate=Counted(folder)).run(store, executor, progress=False)
        assert len(frame) == 24
        assert len(list(folder.iterdir())) == 1

    def test_what_a_worker_cannot_import_is_said_at_once(self, store, monkeypatch):
        def unreadable(packed):
            raise ModuleNotFoundError("No module named 'mine'")

        monkeypatch.setattr("tdcompress.study.workers.pickle.loads", unreadable)
        with (
            ThreadPoolExecutor(1) as executor,
            pytest.raises(CompressionError, match=r"cannot read the study(.|\n)*No module named 'mine'"),
        ):
            study().run(store, executor, progress=False)

    def test_an_executor_that_loses_a_trial_fails_it(self, store):
        class Forgetful(ThreadPoolExecutor):
            count = 0

            def submit(self, fn, /, *arguments, **how):
                self.count += 1
                if self.count != 3:
                    return super().submit(fn, *arguments, **how)
                lost: Future[Any] = Future()
                lost.set_exception(RuntimeError("KilledWorker: gave up"))
                return lost

        with Forgetful(1) as executor, pytest.warns(UserWarning, match=r"2 trials failed.*KilledWorker"):
            assert len(study().run(store, executor, progress=False)) == 22

    def test_at_least_one_trial_is_under_way(self, store):
        with ThreadPoolExecutor(1) as executor, pytest.raises(CompressionError, match="under_way must be at least 1"):
            study().run(store, executor, progress=False, under_way=0)


def test_dask_with_two_workers(dask, tmp_path, folder):
    whole = study(evaluate=Counted(folder, seconds=0.02), methods=RANDOM)
    there = whole.run(tmp_path / "there.sqlite", dask.get_executor(), progress=False)
    assert loads(folder).tolist() == [1, 1]
    same(there, study(methods=RANDOM).run(tmp_path / "here.sqlite", progress=False))


@pytest.mark.full
@pytest.mark.kills
class TestKilled:
    """The driver and the workers are killed at random moments, and the study is run again until it is complete."""

    KILLS = 4  # tests.benchmarks.study does it 20 times

    def test_nothing_is_lost_and_nothing_is_there_twice(self, tmp_path):
        killed_and_resumed(tmp_path, kills=self.KILLS, seed=1)
