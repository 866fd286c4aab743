import gzip

import pytest

from examples.paper.publish import publish
from tdcompress.errors import CompressionError


def finished(folder, rows):
    for name in ("figure1.png", "tau.md", "settings.json", "study.sqlite"):
        (folder / name).write_text(name)
    (folder / "results.csv").write_text("a,b\n" * rows)


def test_tables_and_figures_replace_the_old_ones(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "old.png").touch()
    finished(tmp_path, rows=2)
    files = publish(tmp_path, tmp_path / "docs")
    assert [file.name for file in files] == ["figure1.png", "results.csv", "settings.json", "tau.md"]


def test_a_large_table_is_compressed_and_comes_out_alike_each_time(tmp_path):
    finished(tmp_path, rows=100_000)
    first, second = (publish(tmp_path, tmp_path / name)[1].read_bytes() for name in ("one", "two"))
    assert first == second
    assert gzip.decompress(first) == (tmp_path / "results.csv").read_bytes()


def test_an_unfinished_study_is_refused_and_nothing_is_lost(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "old.png").touch()
    with pytest.raises(CompressionError, match="run the study to its end first"):
        publish(tmp_path, tmp_path / "docs")
    assert (tmp_path / "docs" / "old.png").exists()
