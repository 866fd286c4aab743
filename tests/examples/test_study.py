import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

import tdcompress as td
from examples.paper import __main__ as command
from examples.paper import runner
from examples.paper.chain import Features, batch_size, cut, folded, run
from examples.paper.data import Split, Splits, digits
from examples.paper.grid import Trial, trials
from examples.paper.models import DigitsNet, GaripovNet, resnet18, seeded
from examples.paper.presets import PRESETS
from examples.paper.runner import ERRORS, Bench, compress, feature_images
from examples.paper.store import Store
from examples.paper.train import load_checkpoint
from examples.paper.training import evaluate
from tdcompress.errors import CompressionError

TINY = ["digits", "--layers", "conv[34]", "--methods", "cp", "tucker", "--ratios", "0.5", "0.9", "--runs", "2"]
TINY += ["--finetune-epochs", "1", "--images", "50", "--quiet"]
SECONDS = ["decompose_seconds", "evaluate_seconds", "finetune_seconds"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small study that ran to its end."""
    folder = tmp_path_factory.mktemp("study") / "finished"
    assert command.main([*TINY, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def splits():
    return digits()


@pytest.fixture(scope="module")
def model(finished):
    model = DigitsNet()
    load_checkpoint(model, finished / "model.safetensors")
    return model.eval()


@pytest.fixture
def folder(finished, tmp_path):
    """A new folder with the trained network, so that a study there begins with its trials."""
    shutil.copy(finished / "model.safetensors", tmp_path)
    return tmp_path


@pytest.fixture
def one_thread():
    """As many threads as the preset has: sums in another order end in another local optimum."""
    before = torch.get_num_threads()
    torch.set_num_threads(PRESETS["digits"].threads)
    yield
    torch.set_num_threads(before)


def only(split):
    """A data set of which every part is this one."""
    channels = split.images.shape[1]
    return Splits("few", split, split, split, torch.zeros(channels), torch.ones(channels))


def short_training(preset):
    setting = preset.setting
    return replace(preset, setting=replace(setting, recipe=replace(setting.recipe, epochs=1)))


def table(folder, without=()):
    return pd.read_csv(folder / "results.csv").drop(columns=list(without))


class TestCommand:
    def test_the_table_has_a_row_a_trial(self, finished):
        frame = table(finished)
        assert len(frame) == 2 * 2 * 2 * 2
        assert not frame.duplicated(["layer", "method", "ratio", "run"]).any()
        assert not frame.isna().any().any()
        assert set(ERRORS) < set(frame)
        parts = [f"{part}_{name}" for part in ("validation", "test") for name in ("error", "cross_entropy")]
        assert {*parts, *(f"finetuned_{part}" for part in parts)} < set(frame)
        assert (frame["kept"] <= 1 - frame["ratio"]).all()

    def test_only_what_draws_random_numbers_differs_between_runs(self, finished):
        fixed = [*ERRORS, "test_error", "test_cross_entropy", "sweeps", "decompose_seconds", "evaluate_seconds"]
        for (_, method, _), part in table(finished).groupby(["layer", "method", "ratio"]):
            if method == "tucker":
                assert (part[fixed].nunique() == 1).all()
            else:
                assert (part[["relative_weights", "relative_features", "decompose_seconds"]].nunique() == 2).all()
            assert part["finetuned_test_cross_entropy"].nunique() == 2

    def test_it_reports(self, finished, capsys):
        assert command.main([*TINY, "--output", str(finished)]) == 0  # nothing is left to measure
        printed = capsys.readouterr().out
        assert "2 layers × 2 methods × 2 levels × 2 runs = 16 trials" in printed
        assert "12 distinct decompositions, 16 fine-tunings" in printed
        assert "16 trials are there already" in printed
        assert "Baseline: 0.9" in printed
        assert "after fine-tuning, mean ± std over 2 runs" in printed
        assert "the paper's GaripovNet, F-MNIST" in printed
        assert "Before fine-tuning, over all layers, methods and levels of 50–90 %" in printed
        for name in ("results.csv", "settings.json", "tau.md", "figure1_by_level.png", "figure4_scatter.png"):
            assert (finished / name).exists()

    def test_an_interrupted_study_goes_on_and_ends_alike(self, finished, folder, monkeypatch, capsys):
        def interrupted(*arguments):
            if len(table(folder) if (folder / "results.csv").exists() else ()) == 5:
                raise KeyboardInterrupt
            return fine_tune(*arguments)

        fine_tune = runner.fine_tune
        monkeypatch.setattr(runner, "fine_tune", interrupted)
        assert command.main([*TINY, "--output", str(folder)]) == 130
        assert len(table(folder)) == 5
        with (folder / "results.csv").open("a") as file:
            file.write("conv3,tucker,0.5,1,3x")  # a row that was being written
        monkeypatch.undo()
        assert command.main([*TINY, "--output", str(folder)]) == 0
        assert "5 trials are there already" in capsys.readouterr().out
        pd.testing.assert_frame_equal(table(folder, SECONDS), table(finished, SECONDS), check_exact=False, rtol=1e-4)

    def test_other_settings_are_refused_and_change_nothing(self, finished, capsys):
        before = (finished / "results.csv").read_bytes()
        assert command.main([*TINY, "--seed", "7", "--runs", "3", "--output", str(finished)]) == 2
        message = capsys.readouterr().err
        assert "runs was 2, now 3; seed was 0, now 7. Choose another --output" in message
        assert message.count("\n") == 1
        assert (finished / "results.csv").read_bytes() == before

    def test_fine_tuning_or_not_is_a_setting(self, finished, capsys):
        options = [word for word in TINY if word not in ("--finetune-epochs", "1")]
        assert command.main([*options, "--no-finetune", "--output", str(finished)]) == 2
        assert "fine_tuning was on, now None. Choose" in capsys.readouterr().err
        assert command.main([*options, "--finetune-epochs", "9", "--output", str(finished)]) == 2
        assert "fine_tuning.epochs was 1, now 9. Choose" in capsys.readouterr().err

    def test_fresh_starts_over(self, folder, monkeypatch):
        quick = ["digits", "--layers", "conv4", "--methods", "tt", "--runs", "1", "--no-finetune", "--quiet"]
        quick += ["--output", str(folder)]
        for name in ("results.csv", "notes.txt"):
            (folder / name).write_text("someone else's\n")
        assert command.main([*quick, "--ratios", "0.5", "0.9"]) == 2
        monkeypatch.setattr(command, "PRESETS", {"digits": short_training(PRESETS["digits"])})
        assert command.main([*quick, "--ratios", "0.5", "0.9", "--fresh"]) == 0
        assert len(table(folder)) == 2
        assert (folder / "notes.txt").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--layers", "conv9"], "no layer 'conv9'; did you mean"),
            (["--methods", "tuckre"], "unknown method 'tuckre'"),
            (["--ratios", "90"], "between 0 and 1; found 90.0"),
            (["--runs", "0"], "runs must be at least 1, found 0"),
            (["--images", "-3"], "images must be at least 1, found -3"),
            (["--device", "abacus"], "cannot use the device 'abacus'"),
            (["--ranks", "paper"], "no rank of GaripovNet for layer 'conv1'"),
        ],
    )
    def test_what_cannot_be_done_is_said_in_one_line(self, folder, capsys, options, message):
        chosen = {"--layers": ["conv1"], "--ratios": ["0.5"]}
        arguments = [word for name, words in chosen.items() if name not in options for word in (name, *words)]
        assert command.main(["digits", "--quiet", "--output", str(folder), *arguments, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1

    def test_missing_data_is_said_in_one_line(self, tmp_path, capsys):
        arguments = ["garipov-fmnist", "--quiet", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path)]
        assert command.main(arguments) == 2
        assert "nowhere" in capsys.readouterr().err

    def test_a_study_that_never_began_leaves_nothing_behind(self, tmp_path):
        wrong = ["garipov-fmnist", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path)]
        assert command.main(wrong) == 2
        assert not list(tmp_path.iterdir())

    def test_the_number_of_threads_is_put_back(self, finished):
        before = torch.get_num_threads()
        command.main([*TINY, "--output", str(finished), "--threads", str(before + 1)])
        assert torch.get_num_threads() == before


class TestTrials:
    def test_the_paper_s_grid(self):
        every = list(trials(PRESETS["garipov-fmnist"]))
        assert len(every) == len(set(every)) == 5 * 3 * 5 * 5
        assert len({trial.compression for trial in every}) == 5 * 5 * (5 + 1 + 1)
        assert [trial.layer for trial in every] == sorted(trial.layer for trial in every)

    def test_the_paper_s_ranks_are_used(self):
        preset, network = PRESETS["garipov-fmnist"], seeded(lambda: GaripovNet(1), 0).eval()
        preset = replace(preset, layers=("conv2",), images=4)
        few = Split(torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 2, 3]))
        bench = Bench(network, "conv2", only(few), few.images)
        ranks = {
            method: compress(preset, bench, Trial("conv2", method, 0.9, 0)).row["rank"] for method in preset.methods
        }
        assert ranks == {"cp": "28", "tucker": "14x14", "tt": "40x4x12"}

    def test_one_run_in_another_place_is_the_same(self, model, splits, finished, one_thread):
        bench = Bench(model, "conv4", splits, feature_images(splits.train, 50, 0))
        preset = replace(PRESETS["digits"], layers=("conv4",))
        row = compress(preset, bench, Trial("conv4", "cp", 0.9, 1)).row
        there = table(finished).set_index(["layer", "method", "ratio", "run"]).loc["conv4", "cp", 0.9, 1]
        for name in (*ERRORS, "test_cross_entropy", "validation_error"):
            assert row[name] == pytest.approx(there[name], rel=1e-4)


class TestBench:
    """What is computed from the layer on equals what the library and a plain evaluation say of the whole."""

    @pytest.mark.parametrize("layer", ["conv2", "conv4"])
    @pytest.mark.parametrize("method", ["cp", "tucker", "tt"])
    def test_equals_a_plain_evaluation_of_the_whole(self, model, splits, layer, method):
        images = feature_images(splits.train, 100, seed=3)
        small = td.decompose(model, layer, method, 0.75)
        bench = Bench(model, layer, splits, images)
        expected = td.approximation_errors(model, small, data=images)[layer]
        assert bench.errors(small) == pytest.approx(expected, rel=1e-4)
        found = bench.performance(small)
        for part, split in (("validation", splits.validation), ("test", splits.test)):
            plain = evaluate(small, split.images, split.labels)
            assert found[f"{part}_error"] == plain.error
            assert found[f"{part}_cross_entropy"] == pytest.approx(plain.cross_entropy, rel=1e-4)

    def test_layers_inside_blocks(self):
        network = seeded(lambda: resnet18(3), 0).eval()
        few = Split(torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(6))
        small = td.decompose(network, "layer3.0.conv2", "tucker", 0.9)
        bench = Bench(network, "layer3.0.conv2", only(few), few.images)
        expected = td.approximation_errors(network, small, data=few.images)["layer3.0.conv2"]
        assert bench.errors(small) == pytest.approx(expected, rel=1e-3)
        plain = evaluate(small, few.images, few.labels)
        assert bench.performance(small)["test_cross_entropy"] == pytest.approx(plain.cross_entropy, rel=1e-4)

    def test_the_network_is_left_alone(self, model, splits):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        bench = Bench(model, "conv3", splits, splits.train.images[:10])
        small = td.decompose(model, "conv3", "tt", 0.5)
        bench.errors(small), bench.performance(small)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not model.conv3._forward_hooks


class TestChain:
    def test_the_parts_make_the_whole(self, model, splits):
        images = splits.test.images[:37]
        before, after = cut(model, "conv3")
        assert torch.allclose(after(run(before, images, step=10)), model(images), atol=1e-5)

    def test_folding_changes_no_result_and_no_input(self, model, splits):
        small = td.decompose(model, "conv2", "tucker", 0.5)
        before, after = cut(small, "conv2")
        inputs = run(before, splits.test.images[:20])
        kept = inputs.clone()
        short = folded(after)
        assert len(short) == len(after) - 3
        assert torch.allclose(short(inputs), small(splits.test.images[:20]), atol=1e-4)
        assert torch.equal(inputs, kept)

    def test_features_are_the_same_whether_kept_or_not(self, model, splits):
        images = splits.train.images[:30]
        kept, anew = (list(Features(model, "conv3", images, limit)) for limit in (2**30, 0))
        for place in (0, 1):
            one, other = (torch.cat([pair[place] for pair in features]) for features in (kept, anew))
            assert len(one) == 30
            assert torch.equal(one, other)

    def test_large_images_come_in_small_batches(self):
        assert batch_size(torch.zeros(1, 64, 28, 28)) < batch_size(torch.zeros(1, 128, 6, 6)) <= 512
        assert batch_size(torch.zeros(1, 512, 100, 100)) == 1


class TestFeatureImages:
    def test_a_seeded_draw_without_replacement(self, splits):
        drawn = feature_images(splits.train, 100, seed=1)
        assert drawn.shape == (100, 1, 8, 8)
        assert torch.equal(drawn, feature_images(splits.train, 100, seed=1))
        assert not torch.equal(drawn, feature_images(splits.train, 100, seed=2))
        assert len(drawn.flatten(1).unique(dim=0)) == len(drawn)

    def test_all_of_them(self, splits):
        assert feature_images(splits.train, None, seed=1) is splits.train.images
        assert feature_images(splits.train, 600, seed=1) is splits.train.images


class TestStore:
    def test_a_table_without_settings_is_not_touched(self, tmp_path):
        (tmp_path / "results.csv").write_text("mine\n")
        with pytest.raises(CompressionError, match=r"no settings\.json beside it"):
            Store(tmp_path, {"seed": 0})
        assert (tmp_path / "results.csv").read_text() == "mine\n"

    def test_broken_settings_are_refused(self, tmp_path):
        (tmp_path / "settings.json").write_text("{")
        with pytest.raises(CompressionError, match="cannot be read"):
            Store(tmp_path, {"seed": 0})

    def test_a_header_cut_short_is_no_table(self, tmp_path):
        Store(tmp_path, {"seed": 0}).note()
        (tmp_path / "results.csv").write_text("layer,met")
        store = Store(tmp_path, {"seed": 0})
        assert len(store) == 0
        trial = Trial("conv1", "cp", 0.5, 0)
        store.append(trial, {"error": 0.25})
        assert trial in Store(tmp_path, {"seed": 0})
        assert store.frame().to_dict("records") == [{**vars(trial), "error": 0.25}]
