import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from examples.paper import resuming, training
from examples.paper.data import digits
from examples.paper.models import DigitsNet, digits_resnet, seeded
from examples.paper.recipes import RECIPES
from examples.paper.train import kept_beside, load_checkpoint, main, save_checkpoint, weights_digest
from examples.paper.training import train
from tdcompress.errors import CompressionError
from tests.drawing import more

pytestmark = pytest.mark.usefixtures("one_thread")  # so small that two would wait for each other
ADAM = replace(RECIPES["digits"], epochs=3)
SGD = replace(RECIPES["digits-resnet-sgd"], epochs=3)


class KilledError(Exception):
    pass


def dies_after(steps, monkeypatch):
    """Have the training raise in the middle of everything, as many steps from now."""
    batches, left = training._batches, iter(range(steps))

    def cut(*arguments, **options):
        for batch in batches(*arguments, **options):
            if next(left, None) is None:
                raise KilledError
            yield batch

    monkeypatch.setattr(training, "_batches", cut)


@functools.cache
def trained(build, recipe):
    """A network that was trained without an interruption, and how."""
    model = seeded(build, seed=0)
    return model, train(model, digits(), recipe, seed=3)


@pytest.mark.parametrize(  # ten steps are an epoch
    ("build", "recipe", "steps"),
    [
        *((DigitsNet, ADAM, steps) for steps in (10, 14)),
        *more(*((DigitsNet, ADAM, steps) for steps in (1, 7, 29)), *((digits_resnet, SGD, steps) for steps in (7, 14))),
    ],
)
def test_an_interrupted_training_ends_bit_for_bit_like_another(build, recipe, steps, tmp_path, monkeypatch):
    splits, file = digits(), tmp_path / "new" / "training.safetensors"
    whole, expected = trained(build, recipe)
    monkeypatch.setattr(resuming.Keeper, "due", lambda keeper: True)
    dies_after(steps, monkeypatch)
    with pytest.raises(KilledError):
        train(seeded(build, seed=0), splits, recipe, seed=3, keep=file)
    monkeypatch.undo()
    other = seeded(build, seed=1)
    found = train(other, splits, recipe, seed=3, keep=file)
    assert weights_digest(other) == weights_digest(whole)
    assert [epoch.validation for epoch in found.epochs] == [epoch.validation for epoch in expected.epochs]
    assert [epoch.train_loss for epoch in found.epochs] == [epoch.train_loss for epoch in expected.epochs]
    assert found.best_epoch == expected.best_epoch


def test_a_training_that_has_ended_is_not_trained_again(tmp_path, monkeypatch):
    splits, file = digits(), tmp_path / "training.safetensors"
    recipe = replace(ADAM, epochs=6, patience=1, learning_rate=1e-9)
    model, again = seeded(DigitsNet, seed=0), seeded(DigitsNet, seed=1)
    history = train(model, splits, recipe, keep=file)
    assert len(history.epochs) < 6
    dies_after(0, monkeypatch)
    assert train(again, splits, recipe, keep=file) == history
    assert weights_digest(again) == weights_digest(model)


@pytest.mark.parametrize("change", [{"seed": 1}, {"recipe": SGD}])
def test_another_training_is_not_gone_on_with(change, tmp_path):
    file = tmp_path / "training.safetensors"
    asked = {"recipe": replace(ADAM, epochs=1), "seed": 0, "keep": file}
    train(seeded(DigitsNet, seed=0), digits(), **asked)
    with pytest.raises(CompressionError, match=r"training\.safetensors: is of another training; delete it"):
        train(seeded(DigitsNet, seed=0), digits(), **asked | change)


def test_what_holds_no_training_is_refused(tmp_path):
    file = tmp_path / "training.safetensors"
    file.write_text("nonsense")
    with pytest.raises(CompressionError, match="holds no training that could go on"):
        train(seeded(DigitsNet, seed=0), digits(), ADAM, keep=file)


@pytest.mark.full  # a quick run has the others here
@pytest.mark.kills
def test_a_killed_command_goes_on_and_ends_alike(tmp_path):
    """The process itself is killed, as soon as there is something to go on from."""
    arguments = ["digits", "--epochs", "4", "--threads", "1", "--quiet", "--output"]
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    main([*arguments, str(whole)])
    command = [sys.executable, "-m", "examples.paper.train", *arguments, str(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.getcwd()})
    try:
        while not kept_beside(killed).exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    main([*arguments, str(killed)])
    first, second = (seeded(DigitsNet, seed=seed) for seed in (1, 2))
    notes = [load_checkpoint(model, file) for model, file in ((first, whole), (second, killed))]
    assert weights_digest(first) == weights_digest(second)
    assert notes[0]["test_cross_entropy"] == notes[1]["test_cross_entropy"]
    assert {file.name for file in tmp_path.iterdir()} == {"whole.safetensors", "killed.safetensors"}


def test_a_kill_while_the_weights_are_written_leaves_those_before(tmp_path, monkeypatch):
    first, second, found = (seeded(DigitsNet, seed) for seed in (0, 1, 2))
    file = tmp_path / "model.safetensors"
    save_checkpoint(first, file, {"run": "first"})

    def dies(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise KilledError

    monkeypatch.setattr(resuming, "save_file", dies)
    with pytest.raises(KilledError):
        save_checkpoint(second, file, {"run": "second"})
    assert load_checkpoint(found, file) == {"run": "first"}
    assert weights_digest(found) == weights_digest(first)
    assert list(tmp_path.iterdir()) == [file]


def test_the_digest_is_that_of_weights_and_buffers():
    model, same, other = (seeded(DigitsNet, seed) for seed in (0, 0, 1))
    assert weights_digest(model) == weights_digest(same.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert weights_digest(model) != weights_digest(other)
    same.get_buffer("bn1.running_mean")[0] = 1.0
    assert weights_digest(model) != weights_digest(same)
