from itertools import product

import numpy as np
import pandas as pd
import pytest

import tdcompress as td
from examples.paper import __main__ as command
from examples.paper.gpt import ByteGPT
from examples.paper.presets import PRESETS
from examples.paper.subsets import PAPER, by_subset, performances, report, subset, subsets
from tdcompress.metrics import METRICS


def of(name):
    """The subsets of a preset's layers."""
    preset = PRESETS[name]
    return subsets(preset.parts.build(), preset.layer_names())


def synthetic(layers, ratios=(0.1, 0.5, 0.9), methods=("cp", "tt")):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(product(layers, methods, ratios, [0]), columns=["layer", "method", "ratio", "run"])
    for name in METRICS:
        frame[name] = generator.random(len(frame))
    frame["test_error"] = generator.random(len(frame))
    frame["test_cross_entropy"] = frame["relative_weights"] ** 2
    return frame


class TestSubsets:
    def test_of_resnet18(self):
        found = of("resnet18-fmnist")
        assert len(found["all"]) == 20
        assert found["paper"] == PAPER
        assert found["conv1"] == tuple(f"layer{group}.{block}.conv1" for group in range(1, 5) for block in range(2))
        assert found["downsample"] == tuple(f"layer{group}.0.downsample.0" for group in range(2, 5))
        assert found["stride-two"] == tuple(f"layer{group}.0.conv1" for group in range(2, 5))
        assert found["first"] == (*found["all"][:7],)
        assert set(found["large"]) == {f"layer4.{block}.conv{n}" for block in range(2) for n in (1, 2)} | {
            "layer3.0.conv2",
            "layer3.1.conv1",
            "layer3.1.conv2",
        }

    def test_of_resnet50_and_the_language_model(self):
        bottlenecks = of("resnet50-fmnist")
        assert len(bottlenecks["conv3"]) == 16
        assert bottlenecks["stride-two"] == ("conv1", *(f"layer{group}.0.conv2" for group in range(2, 5)))
        assert "paper" not in bottlenecks
        projections = of("gpt-text")
        for place in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            assert projections[place] == tuple(f"transformer.h.{block}.{place}" for block in range(6))

    @pytest.mark.parametrize("thirds", [("first", "middle", "last"), ("small", "medium", "large")])
    @pytest.mark.parametrize("name", ["resnet18-fmnist", "resnet50-fmnist", "gpt-text", "digits-resnet"])
    def test_thirds_are_all_layers_once(self, name, thirds):
        found = of(name)
        assert sorted(layer for third in thirds for layer in found[third]) == sorted(found["all"])

    def test_an_unknown_one_is_refused_with_the_names(self):
        preset = PRESETS["digits-resnet"]
        with pytest.raises(td.CompressionError, match=r"no subset 'conv9' .* choose one of all, conv1, conv2"):
            subset(preset.parts.build(), preset.layer_names(), "conv9")


class TestTable:
    frame = synthetic("abcdef")
    chosen = {"all": tuple("abcdef"), "two": ("a", "d")}  # noqa: RUF012, nobody changes it

    def test_is_what_correlate_says_of_the_rows_of_a_subset(self):
        table = by_subset(self.frame, self.chosen).set_index(["subset", "across", "error"])
        part = self.frame[self.frame["layer"].isin(["a", "d"]) & (self.frame["ratio"] >= 0.5)]
        for across, columns in (("all", ("layer", "method", "ratio")), ("layers", ("layer",))):
            for error in METRICS:
                expected = td.correlate(part, error, "test_cross_entropy", columns, bootstrap=td.Bootstrap("layers"))
                row = table.loc[("two", across, error)]
                assert (row["layers"], row["tau"]) == (2, expected.mean)
                assert (row["low"], row["high"]) == (expected.low, expected.high)
        assert table.loc[("all", "all", "relative_weights"), "tau"] == 1

    def test_a_layer_that_is_alone_at_a_level_is_compared_with_none(self):
        frame = self.frame[(self.frame["layer"] != "d") | (self.frame["ratio"] < 0.9)]
        table = by_subset(frame, {"two": ("a", "d")}).set_index(["across", "error"])
        left = frame[frame["layer"].isin(["a", "d"]) & (frame["ratio"] == 0.5)]
        expected = td.correlate(left, "scaled_weights", "test_cross_entropy", "layer").mean
        assert table.loc[("layers", "scaled_weights"), "tau"] == expected

    def test_bits_per_byte_where_there_is_no_cross_entropy(self):
        frame = self.frame.drop(columns=["test_error"]).rename(columns={"test_cross_entropy": "test_bits_per_byte"})
        table = by_subset(frame, self.chosen).set_index(["subset", "across", "error"])
        assert table.loc[("all", "all", "relative_weights"), "tau"] == 1


class TestPerformances:
    def test_are_means_over_the_layers_that_every_method_reaches(self):
        frame = synthetic("abc", ratios=(0.5, 0.99))
        frame = frame[(frame["layer"] != "b") | (frame["method"] != "tt") | (frame["ratio"] < 0.99)]
        table = performances(frame, {"all": tuple("abc"), "one": ("b",)}, "test_error").set_index(["subset", "ratio"])
        values = frame.set_index(["layer", "method", "ratio"])["test_error"]
        assert table.loc[("all", 0.5), "cp"] == pytest.approx(values.loc[["a", "b", "c"], "cp", 0.5].mean())
        assert table.loc[("all", 0.99), "tt"] == pytest.approx(values.loc[["a", "c"], "tt", 0.99].mean())
        assert table.loc[("all", 0.99), "cp"] == pytest.approx(values.loc[["a", "c"], "cp", 0.99].mean())
        assert list(table["layers"]) == [3, 2, 1]


class TestReport:
    def test_table_and_picture(self, tmp_path):
        preset = PRESETS["digits-resnet"]
        layers = preset.layer_names()
        files = report(tmp_path, synthetic(layers), preset.parts.build(), layers)
        assert [file.name for file in files] == ["subsets.md", "subsets.png"]
        lines = files[0].read_text(encoding="utf-8").splitlines()
        assert lines[0] == "**τ-a with the test cross-entropy before fine-tuning, by subset of the layers**"
        named = [line.split("|")[1].strip() for line in lines[2 : lines.index("", 2)]][2:]
        assert named == [name for name in ("all", "conv1", "conv2", "first", "middle", "last") for _ in range(2)]
        assert all(line.count("|") == 4 + len(METRICS) for line in lines[: lines.index("", 2)] if line.startswith("|"))

    @pytest.mark.full
    def test_projections_are_compared_by_their_type(self, tmp_path):
        model = ByteGPT(layers=3, width=16, heads=2, context=8)
        places = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        layers = [f"transformer.h.{block}.{place}" for block in range(3) for place in places]
        frame = synthetic(layers, (0.5, 0.75), ("svd", "blr")).drop(columns="test_error")
        report(tmp_path, frame.rename(columns={"test_cross_entropy": "test_bits_per_byte"}), model, layers)
        taus, bits = (
            (tmp_path / "subsets.md").read_text(encoding="utf-8").split("\n\n**Test bits per byte with one layer")
        )
        for place in places:
            assert taus.count(f"| {place} | 3 | layers |") == 1
            part = frame[frame["layer"].str.endswith(place) & (frame["ratio"] == 0.75)]
            means = part.groupby("method")["test_cross_entropy"].mean()
            assert f"| {place} | 75 % | 3 | {means['svd']:.2f} | {means['blr']:.2f} |" in bits

    def test_few_layers_have_none(self, tmp_path):
        preset = PRESETS["digits"]
        assert report(tmp_path, synthetic("abc"), preset.parts.build(), preset.layer_names()) == []
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("briefly")
    @pytest.mark.full
    def test_the_command_takes_a_subset(self, tmp_path):
        arguments = ["digits-resnet", "--subset", "last", "--methods", "svd", "--ratios", "0.5", "0.9", "--quiet"]
        assert command.main([*arguments, "--output", str(tmp_path)]) == 0
        frame = pd.read_csv(tmp_path / "results.csv")
        assert set(frame["layer"]) == {f"layer3.{block}.conv{n}" for block in range(3) for n in (1, 2)}
