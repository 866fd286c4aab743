"""Files that are damaged, foreign, too new or crafted: a clear error, and the model as it was."""

import json
import pickle
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import tdcompress as td


def a_model(channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Conv2d(channels, 8, 3))


def compressed():
    return td.decompose(a_model(), ["0", "2"], "tucker", 0.3)


@pytest.fixture
def file(tmp_path):
    td.save(compressed(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def rewrite(file, change=None, tensors=None, text=None):
    """The same file with other metadata or tensors."""
    with safe_open(file, "pt") as stored:
        document = json.loads(stored.metadata()["tdcompress"])
        values = {name: stored.get_tensor(name) for name in stored.keys()}
    if change is not None:
        change(document)
    if tensors is not None:
        tensors(values)
    save_file(values, file, metadata={"tdcompress": json.dumps(document) if text is None else text})


def refused(file, message, into=None):
    for inplace in (False, True):
        model = a_model() if into is None else into()
        modules, state = list(model.modules()), {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(td.CompressionError, match=message):
            td.load(file, into=model, inplace=inplace)
        assert list(model.modules()) == modules
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def in_layer(**values):
    def change(document):
        document["layers"][1].update(values)

    return change


def in_spec(**values):
    def change(document):
        document["layers"][1]["spec"].update(values)

    return change


def in_solution(**values):
    def change(document):
        document["layers"][1]["solution"].update(values)

    return change


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(file, r"small.safetensors: it is truncated or no safetensors file")


def test_files_of_other_kinds_are_never_unpickled(file):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was executed",)

    for content in (pickle.dumps(Bomb()), b"PK\x03\x04" + pickle.dumps(Bomb()), b"\x80\x02", b"{}", b"\xff" * 64):
        file.write_bytes(content)
        refused(file, "it is truncated or no safetensors file")
    torch.save({"0.weight": torch.zeros(2)}, file)
    refused(file, "it is truncated or no safetensors file")


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 1000,
        b'{"x":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,8]}}',
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,9999999999]}}',
        b'{"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"x":{"dtype":"PY","shape":[2],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"tdcompress":"\xff"}}',
    ],
)
def test_a_crafted_header(file, header):
    for claimed in (len(header), 1 << 62):
        file.write_bytes(struct.pack("<Q", claimed) + header + b"\0" * 8)
        refused(file, "it is truncated or no safetensors file")


def test_a_file_without_our_description(file):
    save_file({"0.weight": torch.zeros(2)}, file)
    refused(file, "it was not written by td.save")


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", "[" * 100_000, '{"version": ' + "9" * 5000 + "}", '{"version": true}', '{"version": "1"}',
     '{"version": 1}', '{"version": 1, "layers": {}, "aliases": {}}',
     '{"version": 1, "layers": [], "aliases": {"a": 1}}',
     '{"version": 1, "layers": [], "aliases": []}', '{"version": NaN, "layers": [], "aliases": {}}'],
)  # fmt: skip
def test_a_damaged_description(file, text):
    rewrite(file, text=text)
    refused(file, "its description is damaged")


def test_a_description_that_is_too_long(file):
    rewrite(file, text='{"version": 1, "x": "' + "x" * (1 << 24) + '"}')
    refused(file, r"its description has \d+ characters")


def test_a_newer_version(file):
    rewrite(file, lambda document: document.update(version=2, layers="of tomorrow"))
    refused(file, r"written by a newer tdcompress \(format 2; this one reads 1\); upgrade")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_layer(name="../../etc/passwd"), "it has a factorized layer '../../etc/passwd'; the model has no module"),
        (in_layer(name="__class__"), "the model has no module of that name"),
        (in_layer(name="2\0"), "the model has no module of that name"),
        (in_layer(name="x" * 100_000), "the model has no module of that name"),
        (in_layer(name=["2"]), "name is "),
        (in_layer(name="1"), "layer '1': the file has a factorized layer, the model a BatchNorm2d"),
        (in_layer(name=""), "layer '': the file has a factorized layer, the model a Sequential"),
        (in_layer(name="0"), "layer '0': the file has in_channels=8, the model in_channels=3"),
        (in_layer(method="os.system"), "layer '2': unknown method 'os.system'; known are "),
        (in_layer(method=["tucker"]), "method is "),
        (in_layer(method="cp"), r"layer '2': cp rank .* has 2 entries, 1 "),
        (in_layer(rank=[10**9, 10**9]), r"layer '2': .*the largest feasible is \(8, 8\)"),
        (in_layer(rank=[0, 1]), "layer '2': "),
        (in_layer(rank=[-3, 2]), "layer '2': "),
        (in_layer(rank=[True, True]), "rank is "),
        (in_layer(rank=[2.0, 2.0]), "rank is "),
        (in_layer(rank="[2, 2]"), "rank is "),
        (in_layer(rank=[2] * 100_000), "layer '2': "),
        (in_layer(axes=[[0], [0]]), r"layer '2': axes \(\(0,\), \(0,\)\) do not have each of \(0, 1\) once"),
        (in_layer(axes=[[0], [7]]), "do not have each"),
        (in_layer(axes=[["0"], [1]]), "axes is "),
        (in_layer(axes=5), "axes is "),
        (in_layer(ratio_asked=float("nan")), "ratio_asked is nan"),
        (in_layer(ratio_asked="0.5"), "ratio_asked is '0.5'"),
        (in_layer(spec=None), "spec is None"),
        (in_spec(kernel_size=[5, 5]), r"the file has kernel_size=\[5, 5\], the model kernel_size=\[3, 3\]"),
        (in_spec(out_channels=10**18), "the file has out_channels=1000000000000000000"),
        (in_spec(surprise=1), "spec is"),
        (in_solution(relative_error=float("nan")), "relative_error is nan"),
        (in_solution(sweeps="many"), "sweeps is 'many'"),
        (in_solution(converged=1), "converged is 1"),
        (lambda document: document["layers"].append(document["layers"][0]), "layer '0': .* layer comes twice"),
        (lambda document: document["layers"].append(7), "name is None"),
        (lambda document: document["layers"].pop(), "of another model: it lacks '2.weight'"),
        (lambda document: document["aliases"].update({"1.weight": "nowhere"}), "'1.weight' is said to be 'nowhere'"),
        (lambda document: document["aliases"].update({"1.weight": "1.bias"}), "'1.weight' is said to be '1.bias'"),
        (lambda document: document["aliases"].update({"new": "1.bias"}), "it has 'new', which the model lacks"),
    ],
)  # fmt: skip
def test_a_crafted_description(file, change, message):
    rewrite(file, change)
    refused(file, message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda values: values.pop("1.running_mean"), "it lacks '1.running_mean'"),
        (lambda values: values.update({"../x": torch.zeros(1)}), "it has '../x', which the model lacks"),
        (
            lambda values: values.update({"2.core.weight": torch.zeros(9)}),
            r"'2.core.weight' has the shape \(9,\) in the",
        ),
        (
            lambda values: values.update({"1.bias": torch.zeros(8, dtype=torch.float64)}),
            "type torch.float64 in the file",
        ),
        (
            lambda values: values.update({"1.bias": torch.zeros(8, 1)}),
            r"shape \(8, 1\) in the file and \(8,\) in the model",
        ),
    ],
)
def test_tensors_that_do_not_fit(file, tensors, message):
    rewrite(file, tensors=tensors)
    refused(file, message)


@pytest.mark.parametrize(
    ("into", "message"),
    [
        (lambda: a_model(16), "layer '0': the file has out_channels=8, the model out_channels=16"),
        (lambda: nn.Sequential(*a_model(), nn.Linear(2, 2)), "it lacks '3.weight'"),
        (lambda: a_model().double(), "'1.weight' has the type torch.float32 in the file and torch.float64"),
        (lambda: nn.Linear(2, 2), "it has a factorized layer '0'; the model has no module of that name"),
        (lambda: torch.compile(a_model(), backend="eager"), "the model is wrapped by OptimizedModule"),
        (lambda: nn.Sequential(td.decompose(nn.Conv2d(3, 8, 3), "", "cp", 0.3), *a_model()[1:]), None),
    ],
)
def test_another_model(file, into, message):
    if message is None:  # factorized otherwise at the same place: the file decides
        assert type(td.load(file, into=into()).get_submodule("0")) is td.TuckerConv
    else:
        refused(file, message, into)


def test_a_layer_inside_a_factorized_one(file):
    rewrite(file, in_layer(name="2.core"))
    refused(file, "layer '2.core': the file has in_channels|is a stage of", into=compressed)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        td.load(tmp_path / "nothing", into=a_model())
    with pytest.raises((OSError, td.CompressionError)):
        td.load(tmp_path, into=a_model())


def test_no_source_of_the_package_unpickles_or_evaluates():
    import re
    from pathlib import Path

    forbidden = re.compile(r"\b(pickle|torch\.load|eval\(|exec\(|__import__|marshal|shelve|joblib)")
    package = Path(td.__file__).parent
    # A driver and its workers pickle their own jobs to each other, as every executor does; no user hands them a file.
    own = {package / "parcels.py", *(package / "study" / name for name in ("workers.py", "measure.py"))}
    for source in set(package.rglob("*.py")) - own:
        code = re.sub(r'(\.eval\(|"""[\s\S]*?"""|"[^"\n]*"|#.*)', "", source.read_text(encoding="utf-8"))
        assert not forbidden.search(code), source
