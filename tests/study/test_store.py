import re
import sqlite3
import subprocess
import sys
import time

import pytest

import tdcompress as td
from tdcompress.errors import CompressionError
from tdcompress.study import read
from tdcompress.study.database import VERSION
from tdcompress.study.store import Store
from tests.study.functions import study


def change(path, statement):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


@pytest.fixture
def planned(store):
    every = study().trials()
    with Store(store) as opened:
        opened.plan(every)
    return every


class TestFile:
    def test_is_in_wal_mode_and_each_result_is_committed(self, store, planned):
        with Store(store) as opened:
            assert opened._connection.execute("pragma journal_mode").fetchone() == ("wal",)
            opened.save(planned[0].key, {"norm": 1.5}, None)
            assert len(read(store)) == 2  # seen by others while it is open, and both runs have this result
        assert not store.with_name("study.sqlite-wal").exists()

    def test_reaches_the_disk_every_few_seconds(self, store, planned, monkeypatch):
        monkeypatch.setattr("tdcompress.study.store._SYNC_SECONDS", 0)
        with Store(store) as opened:
            before = store.read_bytes()
            opened.save(planned[0].key, {"norm": 1.5}, None)
            assert planned[0].key.encode() in store.read_bytes().removeprefix(before)

    def test_failures_and_results_are_told_apart(self, store, planned):
        with Store(store) as opened:
            opened.save(planned[0].key, None, "Traceback …\nZeroDivisionError")
            assert opened.settled() == {planned[0].key}
            assert opened.settled(retry_failed=True) == set()
            opened.save(planned[0].key, {"norm": 1.5}, None)
            assert opened.settled(retry_failed=True) == {planned[0].key}

    def test_numbers_come_back_to_the_last_bit(self, store, planned):
        value = 0.1 + 0.2
        with Store(store) as opened:
            opened.save(planned[0].key, {"norm": value}, None)
            assert opened.frame(planned)["norm"][0] == value


class TestRefused:
    def test_another_version(self, store, planned):
        change(store, f"pragma user_version = {VERSION + 1}")
        with pytest.raises(CompressionError, match=rf"store of version {VERSION + 1}, and this tdcompress has"):
            study().run(store, progress=False)

    def test_another_program_s_database(self, store):
        change(store, "create table recipes (name)")
        with pytest.raises(CompressionError, match="an SQLite file, but no study's"):
            study().run(store, progress=False)

    @pytest.mark.parametrize(
        "statement",
        [
            "create trigger t after insert on trials begin delete from results; end",
            "create view v as select load_extension('x')",
            "create table more (name)",
            "alter table baselines rename column measured to other",
        ],
    )
    def test_tables_of_other_kinds(self, store, planned, statement):
        change(store, statement)
        before = store.read_bytes()
        with pytest.raises(CompressionError, match="not the tables of a study's store; choose another path"):
            study().run(store, progress=False)
        assert store.read_bytes() == before

    @pytest.mark.parametrize("value", ["null", "'{'", "'[]'", "'{\"norm\": [1]}'", "x'00ff'", "7"])
    def test_values_that_were_never_measured(self, store, planned, value):
        with Store(store) as opened:
            opened.save(planned[0].key, {"norm": 1.0}, None)
            opened.keep_baseline("of the model", lambda: {"norm": 1.0})
        change(store, f"update results set measured = {value}, traceback = ''")
        with pytest.raises(CompressionError, match=r"study\.sqlite: .*; choose another path"):
            study().frame(store) if value != "null" else study().failures(store)
        if value != "null":
            change(store, f"update baselines set measured = {value}")
            with Store(store) as opened, pytest.raises(CompressionError, match="what was measured is damaged"):
                opened.baseline("of the model")

    def test_tables_that_are_no_text(self, store, planned):
        store.write_bytes(store.read_bytes().replace(b"rowid", b"row\x8cd"))
        with pytest.raises(CompressionError, match=r"study\.sqlite: its tables are damaged; choose another path"):
            study().frame(store)

    def test_no_database_at_all(self, store):
        store.write_text("layer,method\n" * 100)
        with pytest.raises(CompressionError, match=r"study\.sqlite: file is not a database; choose another path"):
            study().run(store, progress=False)
        assert store.read_text() == "layer,method\n" * 100

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(CompressionError, match=r"unable to open database file; see that its folder exists"):
            study().run(tmp_path / "nowhere" / "study.sqlite", progress=False)

    def test_reading_what_is_not_there(self, store):
        with pytest.raises(CompressionError, match="no such store; run the study first"):
            study().frame(store)
        store.touch()
        with pytest.raises(CompressionError, match="nothing was ever stored there"):
            read(store)

    def test_a_read_only_file(self, store, planned, monkeypatch):
        """Opened as SQLite opens a file that may not be written; the superuser may write every file."""
        connect = sqlite3.connect

        def read_only(target, **options):
            return connect(str(target).replace("mode=rwc", "mode=ro"), **options)

        monkeypatch.setattr(sqlite3, "connect", read_only)
        with pytest.raises(CompressionError, match=r"attempt to write a readonly database; see that"):
            study().run(store, progress=False)

    def test_a_file_that_another_program_has_locked(self, store, planned):
        other = sqlite3.connect(store, isolation_level=None)
        other.execute("begin immediate")
        try:
            with Store(store, patience=0.1) as opened, pytest.raises(CompressionError, match="another program has"):
                opened.save(planned[0].key, {"norm": 1.0}, None)
        finally:
            other.close()

    def test_a_full_disk_loses_nothing_that_had_ended(self, store, planned):
        with Store(store) as opened:
            opened.save(planned[0].key, {"norm": 1.0}, None)
            (pages,) = opened._connection.execute("pragma page_count").fetchone()
            opened._connection.execute(f"pragma max_page_count = {pages}")  # the disk is full from here on
            with pytest.raises(CompressionError, match=r"disk is full; make room and run the study again"):
                opened.save(planned[4].key, {"text": "x" * 100_000}, None)
            assert opened.settled() == {planned[0].key}
        with Store(store) as opened:
            opened.save(planned[4].key, {"text": "x" * 100_000}, None)
            assert opened.settled() == {planned[0].key, planned[4].key}


class TestTwoDrivers:
    def test_the_second_is_refused_and_the_first_goes_on(self, store, planned):
        with Store(store) as first:
            with pytest.raises(CompressionError, match="another driver is running a study into it"):
                study().run(store, progress=False)
            first.save(planned[0].key, {"norm": 1.0}, None)
        assert len(study().run(store, progress=False)) == 24

    @pytest.mark.kills
    def test_in_another_process_too_and_its_death_frees_the_file(self, store):
        code = "import sys, time; from tdcompress.study.store import Store; opened = Store(sys.argv[1])"
        code += "; print('open', flush=True); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"open\n"
            with pytest.raises(CompressionError, match="another driver"):
                Store(store)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        for _ in range(100):  # the operating system may take a moment
            try:
                Store(store).close()
                return
            except CompressionError:
                time.sleep(0.05)
        pytest.fail("the lock outlived its process")

    def test_readers_are_never_refused(self, store, planned):
        with Store(store):
            assert study().frame(store).empty


def test_results_of_another_version_of_tdcompress_are_pointed_out(store, monkeypatch):
    study(layers="3").run(store, progress=False)
    measured_by = re.escape(td.__version__)
    monkeypatch.setattr("tdcompress.__version__", "9.9")
    with pytest.warns(UserWarning, match=f"measured by tdcompress {measured_by}, whose solvers may differ"):
        study(layers="3").run(store, progress=False)
