import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from examples.paper import data, download, formats
from examples.paper.data import DataError, cifar10, digits, fashion_mnist, stratified_split
from examples.paper.evaluation import evaluate
from examples.paper.models import GaripovNet
from examples.paper.train import load_checkpoint
from tdcompress.errors import CompressionError
from tests.fuzz.guards import Memory
from tests.tensors import CHECKPOINT

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
IMAGES_PER_FILE = 20


def idx(array: np.ndarray) -> bytes:
    """The array as an IDX file, compressed."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def write_fashion_mnist(folder, train_size=60, test_size=20, image=(28, 28)):
    """A small Fashion-MNIST in the true format; returns the arrays by prefix."""
    arrays = {}
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (prefix, size) in enumerate((("train", train_size), ("t10k", test_size))):
        images = np.random.default_rng(seed).integers(0, 256, (size, *image), dtype=np.uint8)
        labels = (np.arange(size) % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        arrays[prefix] = images, labels
    return arrays


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did, and arrays as the NumPy of that time."""

    dispatch: ClassVar[dict[type, Any]] = pickle._Pickler.dispatch.copy()

    def save_bytes(self: Any, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes

    def save_str(self, value):
        self.save_bytes(value.encode())

    dispatch[str] = save_str

    def save_bool(self: Any, value):
        self.save(int(value))

    dispatch[bool] = save_bool

    def save_global(self: Any, value, name=None):
        if getattr(value, "__name__", "") == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(value)
        else:
            super().save_global(value, name)  # type: ignore[misc]

    for kind in (type, type(np.empty(0).__reduce__()[0])):
        dispatch[kind] = save_global


def python2_pickle(value) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def cifar10_arrays():
    arrays = {}
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (IMAGES_PER_FILE, 3072), dtype=np.uint8)
        arrays[name] = pixels, (np.arange(IMAGES_PER_FILE) % 10).astype(np.uint8)
    return arrays


def batch(pixels, labels, name="data_batch_1"):
    """The dictionary that CIFAR-10's Python format pickles."""
    filenames = [b"image_%d.png" % number for number in range(len(labels))]
    return {
        b"batch_label": name.encode(),
        b"labels": [int(label) for label in labels],
        b"data": pixels,
        b"filenames": filenames,
    }


def cifar10_files(kind) -> dict[str, bytes]:
    if kind == "python":
        arrays = cifar10_arrays()
        files = {name: python2_pickle(batch(pixels, labels, name)) for name, (pixels, labels) in arrays.items()}
        return {**files, "batches.meta": python2_pickle({b"label_names": [b"airplane"]}), "readme.html": b"<HTML>"}
    files = {
        f"{name}.bin": np.concatenate([labels[:, None], pixels], axis=1).tobytes()
        for name, (pixels, labels) in cifar10_arrays().items()
    }
    return {**files, "batches.meta.txt": b"airplane\n", "readme.html": b"<HTML>"}


FOLDERS = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}


def write_cifar10(place, kind, container):
    """A small CIFAR-10 in the true format; returns what to give to `cifar10`."""
    files = cifar10_files(kind)
    if container == "archive":
        archive = place / f"cifar-10-{kind}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, contents in files.items():
                member = tarfile.TarInfo(f"{FOLDERS[kind]}/{name}")
                member.size = len(contents)
                tar.addfile(member, io.BytesIO(contents))
        return archive
    folder = place / FOLDERS[kind]
    folder.mkdir()
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder if container == "folder" else place


def raw(splits, split):
    """The bytes that a standardised split was made of."""
    images = split.images * splits.std[:, None, None] + splits.mean[:, None, None]
    return (images * 255).round().to(torch.uint8)


class TestStratifiedSplit:
    @pytest.mark.parametrize("size", [0, 1, 7, 50, 99])
    def test_is_a_partition_with_every_class_in_proportion(self, size):
        labels = torch.tensor([0] * 50 + [1] * 30 + [5] * 20)[torch.randperm(100, generator=torch.Generator())]
        rest, chosen = stratified_split(labels, size, seed=3)
        assert len(chosen) == size
        assert torch.equal(torch.cat([rest, chosen]).sort().values, torch.arange(100))
        for label, count in ((0, 50), (1, 30), (5, 20)):
            assert abs((labels[chosen] == label).sum().item() - count * size / 100) < 1

    def test_depends_on_the_seed_alone(self):
        labels, before = torch.arange(100) % 4, torch.get_rng_state()
        first, second, other = (stratified_split(labels, 40, seed)[1] for seed in (0, 0, 1))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("size", [-1, 10, 11])
    def test_impossible_sizes_are_refused(self, size):
        with pytest.raises(CompressionError, match=rf"cannot set aside {size} of 10 images; choose 0 .. 9"):
            stratified_split(torch.zeros(10), size, seed=0)


class TestDigits:
    def test_three_stratified_parts(self):
        splits = digits()
        for part in (splits.train, splits.validation, splits.test):
            assert part.images.shape == (599, 1, 8, 8)
            assert part.images.dtype == torch.float32
            assert part.labels.dtype == torch.int64
            counts = part.labels.bincount()
            assert len(counts) == 10
            assert counts.min() >= 57
            assert counts.max() <= 62

    def test_parts_are_disjoint_and_complete(self):
        from sklearn.datasets import load_digits

        splits = digits(seed=4)
        parts = [splits.train, splits.validation, splits.test]
        images = torch.cat([part.images * splits.std + splits.mean for part in parts]).mul(16).round().flatten(1)
        expected = torch.from_numpy(load_digits().data).float()
        assert sorted(images.tolist()) == sorted(expected.tolist())

    def test_the_training_part_is_standardised(self):
        splits = digits()
        assert splits.train.images.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert splits.train.images.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
        assert splits.black.item() == splits.train.images.min().item()

    def test_is_reproducible(self):
        assert torch.equal(digits(seed=1).test.images, digits(seed=1).test.images)
        assert not torch.equal(digits(seed=1).test.images, digits(seed=2).test.images)


class TestSplits:
    def test_moving_and_taking(self):
        splits = digits()
        moved = splits.to("meta")
        assert moved.test.images.device.type == moved.mean.device.type == "meta"
        part = splits.test.take(slice(7))
        assert len(part) == 7
        assert torch.equal(part.labels, splits.test.labels[:7])


class TestFashionMNIST:
    def test_reads_a_folder(self, tmp_path):
        arrays = write_fashion_mnist(tmp_path)
        splits = fashion_mnist(tmp_path, validation_size=20)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [40, 20, 20]
        assert splits.validation.labels.bincount().tolist() == [2] * 10
        assert torch.equal(splits.test.labels, torch.from_numpy(arrays["t10k"][1]).long())
        assert torch.equal(raw(splits, splits.test), torch.from_numpy(arrays["t10k"][0])[:, None])
        assert splits.train.images.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert splits.train.images.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)

    def test_training_and_validation_images_are_those_of_the_file(self, tmp_path):
        arrays = write_fashion_mnist(tmp_path)
        splits = fashion_mnist(tmp_path, validation_size=20, seed=9)
        both = torch.cat([raw(splits, splits.train), raw(splits, splits.validation)]).flatten(1)
        assert sorted(both.tolist()) == sorted(arrays["train"][0].reshape(60, -1).tolist())

    def test_the_seed_decides_about_the_validation_part(self, tmp_path):
        write_fashion_mnist(tmp_path)
        first, second, other = (fashion_mnist(tmp_path, validation_size=20, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first.validation.images, second.validation.images)
        assert not torch.equal(raw(first, first.validation), raw(other, other.validation))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda file: file[:100], "cannot be decompressed"),
            (lambda file: b"<html>not here</html>", "cannot be decompressed"),
            (lambda file: file[:60] + bytes([file[60] ^ 255]) + file[61:], "cannot be decompressed"),
            (lambda file: b"", "start with 00 00 08 01 and IDX images with 00 00 08 03, but this file with nothing"),
            (lambda file: gzip.compress(b"\x00\x00\x0d\x03rest"), "but this file with 00 00 0d 03"),
            (lambda file: gzip.compress(b"\x00\x00\x08\x03\x00\x00"), "bytes, but there are 6"),
            (
                lambda file: gzip.compress(gzip.decompress(file)[:-1]),
                "60 × 28 × 28, so 47056 .* there are 47055",
            ),
            (lambda file: gzip.compress(gzip.decompress(file) + b"x"), "47056 bytes, but there are 47057"),
        ],
    )
    def test_broken_files_are_named(self, tmp_path, change, message):
        write_fashion_mnist(tmp_path)
        path = tmp_path / "train-images-idx3-ubyte.gz"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DataError, match=message) as caught:
            fashion_mnist(tmp_path, validation_size=20)
        assert str(path) in str(caught.value)
        assert "get it again" in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path):
        write_fashion_mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz: no such file"):
            fashion_mnist(tmp_path, validation_size=20)

    def test_images_of_another_size_are_refused(self, tmp_path):
        write_fashion_mnist(tmp_path, image=(14, 14))
        with pytest.raises(DataError, match=r"images must be \(N, 28, 28\) .* found \(60, 14, 14\) and \(60,\)"):
            fashion_mnist(tmp_path, validation_size=20)

    def test_labels_of_other_images_are_refused(self, tmp_path):
        write_fashion_mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(19, dtype=np.uint8)))
        with pytest.raises(DataError, match=r"found \(20, 28, 28\) and \(19,\)"):
            fashion_mnist(tmp_path, validation_size=20)

    def test_labels_that_are_no_classes_are_refused(self, tmp_path):
        write_fashion_mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.full(20, 10, dtype=np.uint8)))
        with pytest.raises(DataError, match=r"labels must be 0 .. 9, found 10"):
            fashion_mnist(tmp_path, validation_size=20)

    def test_an_empty_test_part_is_only_empty(self, tmp_path):
        write_fashion_mnist(tmp_path, test_size=0)
        assert len(fashion_mnist(tmp_path, validation_size=20).test) == 0

    def test_downloads_once(self, tmp_path, monkeypatch):
        source = tmp_path / "server"
        write_fashion_mnist(source)
        monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "not installed")
        monkeypatch.setattr(data, "FASHION_MNIST_ADDRESS", source.as_uri() + "/")
        sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in source.iterdir()}
        monkeypatch.setattr(data, "FASHION_MNIST_MD5", sums)
        first = fashion_mnist(validation_size=20, cache=tmp_path / "cache")
        for file in source.iterdir():
            file.unlink()
        again = fashion_mnist(validation_size=20, cache=tmp_path / "cache")
        assert torch.equal(first.train.images, again.train.images)
        assert len(list((tmp_path / "cache" / "fashion-mnist").iterdir())) == 4

    @pytest.mark.skipif(not data.DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
    @pytest.mark.parametrize(("name", "md5"), data.FASHION_MNIST_MD5.items())
    def test_debians_files_are_the_published_ones_but_for_the_gzip_header(self, name, md5):
        # The published files were compressed with their names, on 31 August 2017; Debian's without.
        compressed = (data.DEBIAN_FASHION_MNIST / name).read_bytes()[10:]
        time = 1504176627 if name.startswith("t10k") else 1504176606
        header = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\x00\x03"
        file_name = name.removesuffix(".gz").encode() + b"\x00"
        assert hashlib.md5(header + file_name + compressed).hexdigest() == md5

    @pytest.mark.full
    @pytest.mark.skipif(not data.DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's dataset-fashion-mnist")
    def test_debians_folder_is_found_and_the_committed_network_classifies_what_lies_there(self):
        splits = fashion_mnist()
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [55_000, 5000, 10_000]
        assert splits.validation.labels.bincount().tolist() == [500] * 10
        assert splits.mean.item() == pytest.approx(0.286, abs=1e-3)
        assert splits.std.item() == pytest.approx(0.353, abs=1e-3)
        model, part = GaripovNet(in_channels=1), splits.test.take(slice(500))
        assert float(load_checkpoint(model, CHECKPOINT)["test_accuracy"]) >= 0.93
        assert evaluate(model, part.images, part.labels).accuracy >= 0.93


@pytest.mark.parametrize("kind", ["python", "binary"])
class TestCIFAR10:
    @pytest.mark.parametrize("container", ["folder", "folder above", "archive"])
    def test_reads_every_form(self, tmp_path, kind, container):
        path = write_cifar10(tmp_path, kind, container)
        splits = cifar10(path, validation_size=30, images_per_file=IMAGES_PER_FILE)
        assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [70, 30, 20]
        assert splits.validation.labels.bincount().tolist() == [3] * 10
        arrays = cifar10_arrays()
        pixels = torch.from_numpy(arrays["test_batch"][0]).reshape(-1, 3, 32, 32)
        assert torch.equal(raw(splits, splits.test), pixels)
        both = torch.cat([raw(splits, splits.train), raw(splits, splits.validation)]).flatten(1)
        expected = np.concatenate([arrays[name][0] for name in NAMES[:5]])
        assert sorted(both.tolist()) == sorted(expected.tolist())
        for channel in splits.train.images.unbind(1):
            assert channel.mean().item() == pytest.approx(0.0, abs=1e-5)
            assert channel.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)

    def test_a_missing_file_is_named(self, tmp_path, kind):
        path = write_cifar10(tmp_path, kind, "folder")
        next(path.glob("data_batch_3*")).unlink()
        with pytest.raises(DataError, match=r"data_batch_3\S* not found"):
            cifar10(path, images_per_file=IMAGES_PER_FILE)

    def test_a_file_with_too_few_images_is_named(self, tmp_path, kind):
        path = write_cifar10(tmp_path, kind, "folder")
        with pytest.raises(DataError, match="data_batch_1 holds 20 images, not 10000"):
            cifar10(path)

    @pytest.mark.parametrize("keep", [0, 1, 1000, -1])
    def test_files_cut_short_are_named(self, tmp_path, kind, keep):
        path = next(write_cifar10(tmp_path, kind, "folder").glob("data_batch_4*"))
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=rf"{path.name}: .*get it again"):
            cifar10(tmp_path, images_per_file=None)

    @pytest.mark.parametrize("keep", [0, 5, 1000, -100])
    def test_archives_cut_short_are_named(self, tmp_path, kind, keep):
        path = write_cifar10(tmp_path, kind, "archive")
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=path.name):
            cifar10(path, images_per_file=None)

    def test_downloads_the_binary_archive(self, tmp_path, monkeypatch, kind):
        source = tmp_path / "server"
        source.mkdir()
        contents = write_cifar10(source, kind, "archive").read_bytes()
        (source / "cifar-10-binary.tar.gz").write_bytes(contents)
        monkeypatch.setattr(data, "CIFAR10_ADDRESS", source.as_uri() + "/")
        monkeypatch.setattr(data, "CIFAR10_MD5", hashlib.md5(contents).hexdigest())
        splits = cifar10(cache=tmp_path / "cache", images_per_file=None, validation_size=10)
        assert len(splits.test) == IMAGES_PER_FILE


class TestCIFAR10Contents:
    def test_a_path_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
            cifar10(tmp_path / "nowhere")

    def test_a_folder_of_other_things_is_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"data_batch_1, .*, test_batch not found"):
            cifar10(tmp_path)

    @pytest.mark.parametrize("kind", ["python", "binary"])
    def test_labels_that_are_no_classes_are_refused(self, tmp_path, kind):
        pixels, labels = cifar10_arrays()["test_batch"]
        labels[3] = 10
        parse, contents = {
            "python": (formats.parse_cifar10_pickle, python2_pickle(batch(pixels, labels))),
            "binary": (formats.parse_cifar10_binary, np.concatenate([labels[:, None], pixels], axis=1).tobytes()),
        }[kind]
        with pytest.raises(DataError, match=r"somewhere: labels must be 0 .. 9, found 0 .. 10"):
            parse(contents, "somewhere")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([1, 2], "this pickle is no dictionary but a list"),
            ({b"other": 1}, "`data` must be uint8 .* found NoneType"),
            ({b"data": [1], b"labels": [1]}, "`data` must be uint8 .* found list"),
            (batch(np.zeros((2, 100), np.uint8), [0, 1]), r"found uint8 \(2, 100\)"),
            (batch(np.zeros((2, 3072), np.float32), [0, 1]), "found float32"),
            (batch(np.zeros((2, 3072), np.uint8), [0]), "2 images but 1 labels"),
            ({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [0]}, "`labels` must be a list of integers"),
            ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [0.5]}, "`labels` must be a list of integers"),
        ],
    )
    def test_other_pickles_are_refused(self, value, message):
        with pytest.raises(DataError, match=f"somewhere: .*{message}"):
            formats.parse_cifar10_pickle(python2_pickle(value), "somewhere")

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_a_pickle_that_runs_code_is_refused_before_it_runs(self, tmp_path, protocol):
        class Hostile:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "it ran"),)

        contents = pickle.dumps({"data": Hostile(), "labels": []}, protocol)
        with pytest.raises(DataError, match=r"somewhere: this pickle asks for \w+.mkdir"):
            formats.parse_cifar10_pickle(contents, "somewhere")
        assert not (tmp_path / "it ran").exists()

    @pytest.mark.parametrize(
        "name",
        [
            b"builtins\neval",
            b"numpy\nload",
            b"numpy\nndarray.tofile",
            b"numpy.core.multiarray\nfromfile",
            b"os\nsystem",
        ],
    )
    def test_only_the_names_of_arrays_are_known(self, name):
        with pytest.raises(DataError, match="asks for"):
            formats.parse_cifar10_pickle(b"c" + name + b"\n.", "somewhere")

    def test_numbers_in_a_pickle_claim_no_memory(self):
        before = Memory()
        for claim in (b"}r\xff\xff\xff\x7f.", b"\x96" + struct.pack("<Q", 1 << 34) + b".", b"T\xff\xff\xff\x7f."):
            with pytest.raises(DataError, match="somewhere: "):
                formats.parse_cifar10_pickle(b"\x80\x02" + claim, "somewhere")
        assert before.grown() < 10 << 20

    @pytest.mark.parametrize("code", ["O", "V8", "(1000000000,)u1", "u3", "M8[s]"])
    def test_arrays_of_other_things_than_numbers_are_refused(self, code):
        class Array:
            def __reduce__(self):
                kind = np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b")
                return (*kind, (1, (1,), Type(), False, b"12345678"))

        class Type:
            def __reduce__(self):
                return np.dtype, (code, 0, 1), (3, "<", None, None, None, -1, -1, 0)

        contents = python2_pickle({b"data": Array(), b"labels": [1]})
        with pytest.raises(DataError, match=r"somewhere: this .*(not of numbers|cannot be unpickled)"):
            formats.parse_cifar10_pickle(contents, "somewhere")

    def test_noise_is_no_pickle(self):
        generator = np.random.default_rng(0)
        for _ in range(300):
            with pytest.raises(DataError, match="somewhere"):
                formats.parse_cifar10_pickle(b"\x80\x02" + generator.bytes(40), "somewhere")


class TestBombs:
    def test_what_grows_too_large_is_not_decompressed(self, tmp_path):
        path = tmp_path / "zeros.gz"
        path.write_bytes(gzip.compress(bytes(5 << 20)))
        assert len(formats.gunzip(path, most=5 << 20)) == 5 << 20
        with pytest.raises(DataError, match=r"zeros.gz: holds more than 4 MiB"):
            formats.gunzip(path, most=(5 << 20) - 1)

    def test_a_member_that_is_mostly_holes_is_passed_over(self, tmp_path):
        member = tarfile.TarInfo("test_batch.bin")
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[156:157], header[483:495] = tarfile.GNUTYPE_SPARSE, b"77777777777\0"  # 8 GiB
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]  # type: ignore[attr-defined]
        path = tmp_path / "cifar.tar.gz"
        path.write_bytes(gzip.compress(bytes(header) + bytes(1024)))
        with pytest.raises(DataError, match=r"test_batch.* not found"):
            cifar10(path)


class TestDownload:
    def test_a_wrong_checksum_keeps_nothing(self, tmp_path):
        (tmp_path / "source").write_bytes(b"other contents")
        target = tmp_path / "cache" / "file"
        with pytest.raises(DataError, match=r"gave a file with MD5 .*, not 0000"):
            download.download((tmp_path / "source").as_uri(), target, "0000")
        assert list(target.parent.iterdir()) == []

    def test_a_damaged_file_is_replaced(self, tmp_path):
        (tmp_path / "source").write_bytes(b"contents")
        target = tmp_path / "file"
        target.write_bytes(b"conte")
        download.download((tmp_path / "source").as_uri(), target, hashlib.md5(b"contents").hexdigest())
        assert target.read_bytes() == b"contents"

    @pytest.mark.parametrize("address", ["file:///no/such/file", "no address"])
    def test_what_cannot_be_reached_says_what_to_do(self, tmp_path, address):
        with pytest.raises(DataError, match=r"cannot be downloaded .* name the folder or the archive"):
            download.download(address, tmp_path / "file", "0000")

    def test_the_cache_follows_the_users_setting(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert download.cache_folder() == tmp_path / "tdcompress"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert download.cache_folder().parts[-2:] == (".cache", "tdcompress")
