import gzip
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import GPT2LMHeadModel

from examples.paper import __main__ as command
from examples.paper.evaluation import evaluate
from examples.paper.formats import DataError
from examples.paper.gpt import ByteGPT
from examples.paper.models import seeded
from examples.paper.presets import PRESETS
from examples.paper.recipes import Recipe
from examples.paper.text import text
from examples.paper.train import SETTINGS, main
from examples.paper.training import train
from tdcompress.metrics import METRICS

pytestmark = pytest.mark.usefixtures("one_thread")  # so small that two would wait for each other
CONTEXT = 32
RECIPE = Recipe(learning_rate=1e-2, epochs=3, optimizer="adam", schedule="one-cycle", batch_size=16)


def tiny():
    return ByteGPT(layers=2, width=32, heads=2, context=CONTEXT)


def short_windows(path):
    return text(path, context=CONTEXT)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Sentences of few words in random order: there is something to learn in seconds."""
    words = [b"the", b"tensor", b"of", b"rank", b"one", b"is", b"small", b"and", b"every", b"matrix"]
    order = torch.randint(len(words), (3000,), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_bytes(b" ".join(words[place] for place in order))
    return path


class TestText:
    def test_labels_are_the_bytes_that_follow(self, file):
        contents = file.read_bytes()
        found = text(file, context=CONTEXT)
        assert found.train.images.dtype == torch.uint8
        for part in (found.train, found.validation, found.test):
            assert torch.equal(part.images[:, 1:], part.labels[:, :-1])
            for window, label in zip(part.images, part.labels, strict=True):
                assert bytes(window.tolist()) + bytes(label[-1:].tolist()) in contents

    def test_parts_are_blocks_that_together_are_the_text(self, file):
        found = text(file, context=CONTEXT)
        sizes = [len(part) for part in (found.train, found.validation, found.test)]
        assert sizes[1] == sizes[2] == 16
        windows = [
            bytes(window) for part in (found.train, found.validation, found.test) for window in part.images.numpy()
        ]
        contents = file.read_bytes()
        whole = [contents[start : start + CONTEXT] for start in range(0, sum(sizes) * CONTEXT, CONTEXT)]
        assert sorted(windows) == sorted(whole)
        assert b"".join(bytes(window) for window in found.test.images.numpy()) in contents

    def test_the_seed_decides_what_is_held_out(self, file):
        first, same, other = (text(file, context=CONTEXT, seed=seed).test.images for seed in (0, 0, 1))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_a_compressed_file_is_the_same_text(self, file, tmp_path):
        packed = tmp_path / "words.dict.dz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        assert torch.equal(text(packed, context=CONTEXT).train.images, text(file, context=CONTEXT).train.images)

    def test_what_cannot_be_read_is_refused(self, file, tmp_path, monkeypatch):
        with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read \(No such file"):
            text(tmp_path / "nowhere.txt")
        (tmp_path / "short.txt").write_bytes(b"a" * 3 * 16 * CONTEXT)
        with pytest.raises(DataError, match=r"short\.txt: 1536 bytes are too few; it takes 1537 at least"):
            text(tmp_path / "short.txt", context=CONTEXT)
        (tmp_path / "cut.txt").write_bytes(gzip.compress(file.read_bytes())[:1000])
        with pytest.raises(DataError, match=r"cut\.txt: cannot be decompressed"):
            text(tmp_path / "cut.txt")
        monkeypatch.setattr("examples.paper.text.DEBIAN_GCIDE", tmp_path / "gcide.dict.dz")
        with pytest.raises(DataError, match="install Debian's package dict-gcide"):
            text()


class TestByteGPT:
    def test_is_transformers_own_model(self):
        model = seeded(tiny, seed=0).eval()
        plain = GPT2LMHeadModel(model.config).eval()
        plain.load_state_dict(model.state_dict())
        inputs = torch.randint(256, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(model(inputs.to(torch.uint8)), plain(inputs).logits)

    def test_sees_nothing_of_what_follows(self):
        model = seeded(tiny, seed=0).eval()
        inputs = torch.zeros(1, CONTEXT, dtype=torch.uint8)
        other = inputs.clone()
        other[:, 20:] = 7
        with torch.inference_mode():
            first, second = model(inputs), model(other)
        assert torch.equal(first[:, :20], second[:, :20])
        assert not torch.equal(first[:, 20:], second[:, 20:])

    def test_bits_per_byte_are_the_loss_that_transformers_says(self, file):
        model, part = seeded(tiny, seed=0).eval(), text(file, context=CONTEXT).test
        plain = GPT2LMHeadModel(model.config).eval()
        plain.load_state_dict(model.state_dict())
        windows = torch.cat([part.images, part.labels[:, -1:]], dim=1).long()
        model_of_all = plain(windows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(model_of_all.transpose(1, 2), windows[:, 1:])
        found = evaluate(model, part.images, part.labels, batch_size=5)
        assert found.bits_per_byte == pytest.approx(loss.item() / math.log(2), rel=1e-5)
        assert found.bits_per_byte == pytest.approx(8.0, abs=0.3)  # it has learned nothing yet

    @pytest.mark.full
    def test_learns_in_bfloat16(self, file):
        model, splits = seeded(tiny, seed=0), text(file, context=CONTEXT)
        train(model, splits, replace(RECIPE, epochs=5, autocast=True))
        assert evaluate(model, splits.test.images, splits.test.labels).bits_per_byte < 2.0


@pytest.fixture
def small(monkeypatch):
    """The setting and its study, of a network that is trained in seconds."""
    setting = replace(SETTINGS["gpt-text"], build=tiny, load=short_windows, recipe=RECIPE)
    monkeypatch.setitem(SETTINGS, "gpt-text", setting)
    preset = replace(PRESETS["gpt-text"], training=RECIPE, images=8, threads=1)
    monkeypatch.setattr(command, "PRESETS", {"gpt-text": preset})


@pytest.mark.usefixtures("small")
class TestCommands:
    @pytest.mark.full
    def test_the_study_is_about_bits_per_byte(self, file, tmp_path, capsys):
        arguments = ["gpt-text", "--data", str(file), "--layers", "transformer.h.1.*", "--quiet"]
        arguments += ["--ratios", "0.5", "0.9", "--output", str(tmp_path)]
        assert command.main(arguments) == 0
        printed = capsys.readouterr().out
        assert "4 layers × 4 methods × 2 levels × 1 run = 32 trials" in printed
        assert "bits per byte. Judging by this evaluation's time" in printed
        assert "the test bits per byte best" in printed
        assert "the paper" not in printed
        frame = pd.read_csv(tmp_path / "results.csv")
        assert set(METRICS) < set(frame)
        assert set(frame["method"]) == {"svd", "kronecker", "ttm", "blr"}
        assert frame["test_bits_per_byte"].between(0.5, 9).all()
        assert not any("test_error" in name or "cross_entropy" in name for name in frame)
        worst = frame.groupby("ratio")["test_bits_per_byte"].mean()
        assert worst[0.9] > worst[0.5]
        header = next(line for line in (tmp_path / "tau.md").read_text().splitlines() if line.startswith("| across"))
        assert header == "| across | approximation error | bits per byte |"
        assert (tmp_path / "figure5_regret.png").exists()

    def test_it_is_trained_by_the_command_too(self, file, tmp_path, capsys):
        main(
            ["gpt-text", "--data", str(file), "--epochs", "1", "--quiet", "--output", str(tmp_path / "gpt.safetensors")]
        )
        printed = capsys.readouterr().out
        assert "test_bits_per_byte: " in printed
        assert "accuracy" not in printed
        assert "weights: SHA-256 " in printed
