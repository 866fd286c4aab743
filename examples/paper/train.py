"""Trains one of the study's networks and saves it: `python -m examples.paper.train garipov-fmnist`.

Interrupted or killed, the same command goes on from where it was, a minute before at most.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import torch
from torch import nn

from examples.command import run_command
from examples.paper import data
from examples.paper.models import DigitsNet, GaripovNet, digits_resnet, resnet18, resnet50, seeded
from examples.paper.resuming import save_whole
from examples.paper.text import text
from examples.paper.training import RECIPES, Recipe, evaluate, train
from tdcompress.errors import CompressionError
from tdcompress.threads import on_threads


@dataclass(frozen=True)
class Setting:
    """A network, the data it is trained on, and how.

    Attributes:
        build: makes the network with random weights.
        load: reads the data from a folder or archive; from the data set's usual place for None.
        recipe: how it is trained by default.
        fine_tuning: how it is fine-tuned after a compression.
        measures: of a `Performance`, by which the network is judged; the first one above all.
    """

    build: Callable[[], nn.Module]
    load: Callable[[str | None], data.Splits]
    recipe: Recipe
    fine_tuning: Recipe
    measures: tuple[str, ...] = ("error", "cross_entropy")


def _gpt() -> nn.Module:
    from examples.paper.gpt import ByteGPT  # transformers takes seconds to import, and only this network needs it

    return ByteGPT()


def _digits(path: str | None) -> data.Splits:
    if path is not None:
        raise CompressionError(f"the digits come with scikit-learn, not from {path!r}; leave --data out")
    return data.digits()


_GARIPOV = RECIPES["garipov"], RECIPES["garipov-fine-tuning"]
_RESNET18 = RECIPES["resnet18"], RECIPES["resnet18-fine-tuning"]
_RESNET18_FMNIST = RECIPES["resnet18-fmnist"], RECIPES["resnet18-fine-tuning"]
_RESNET50_FMNIST = RECIPES["resnet50-fmnist"], RECIPES["resnet18-fine-tuning"]
_DIGITS = RECIPES["digits"], RECIPES["digits-fine-tuning"]

SETTINGS = {
    "garipov-fmnist": Setting(lambda: GaripovNet(in_channels=1), data.fashion_mnist, *_GARIPOV),
    "garipov-cifar10": Setting(lambda: GaripovNet(in_channels=3), data.cifar10, *_GARIPOV),
    "resnet18-cifar10": Setting(lambda: resnet18(in_channels=3), data.cifar10, *_RESNET18),
    "resnet18-fmnist": Setting(lambda: resnet18(in_channels=1), data.fashion_mnist, *_RESNET18_FMNIST),
    "resnet50-fmnist": Setting(lambda: resnet50(in_channels=1), data.fashion_mnist, *_RESNET50_FMNIST),
    "gpt-text": Setting(_gpt, text, RECIPES["gpt"], RECIPES["gpt-fine-tuning"], ("bits_per_byte",)),
    "digits": Setting(DigitsNet, _digits, *_DIGITS),
    "digits-resnet": Setting(digits_resnet, _digits, RECIPES["digits-resnet"], RECIPES["digits-fine-tuning"]),
    "digits-resnet-sgd": Setting(digits_resnet, _digits, RECIPES["digits-resnet-sgd"], RECIPES["digits-fine-tuning"]),
}


def save_checkpoint(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Writes the network's weights and buffers, with notes, as a safetensors file, in one step.

    Args:
        model: the network.
        path: the file; its folder is made if it is missing.
        metadata: notes kept in the file's header.
    """
    save_whole(model.state_dict(), path, metadata)


def load_checkpoint(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Reads what `save_checkpoint` wrote into a network of the same architecture, in place.

    Args:
        model: the network.
        path: the file.

    Returns:
        The notes in the file's header.

    Raises:
        CompressionError: there is no such file, it is no safetensors file, or it is another architecture's.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
        model.load_state_dict(state)
    except FileNotFoundError:
        raise CompressionError(f"{path}: no such file; make it with python -m examples.paper.train") from None
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise CompressionError(f"{path}: does not fit {type(model).__name__}: {error}") from error
    return metadata


def kept_beside(weights: Path) -> Path:
    """Where a training is kept until it has ended and its weights are there.

    >>> kept_beside(Path("results/model.safetensors")).as_posix()
    'results/model.training.safetensors'
    """
    return weights.with_name(f"{weights.stem}.training.safetensors")


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, by which two trainings are told to have ended alike.

    Notes such as the time that a training took, which are in the file beside them, do not count.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see `--help`. Beside the file of weights there is one of the training until it has ended."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    with on_threads(options.threads):
        _train(options, " ".join(["python -m examples.paper.train", *arguments]))


def _train(options: argparse.Namespace, command: str) -> None:
    setting = SETTINGS[options.setting]
    recipe = _recipe(options)
    splits = setting.load(options.data)
    model = seeded(setting.build, options.seed).to(options.device)
    output = Path(options.output or f"{options.setting}.safetensors")
    kept = kept_beside(output)
    history = train(model, splits, recipe, options.seed, not options.quiet, kept)
    parts = {"validation": splits.validation, "test": splits.test}
    reached = {name: evaluate(model, part.images, part.labels, batch_size=100) for name, part in parts.items()}
    metadata = {
        "command": command,
        "recipe": repr(recipe),
        "best_epoch": str(history.best_epoch + 1),
        "seconds": f"{history.seconds:.0f}",
        "machine": f"{options.device}, {torch.get_num_threads()} threads, {platform.machine()}",
        "torch": torch.__version__,
    }
    for measure in ("accuracy" if measure == "error" else measure for measure in setting.measures):
        metadata |= {f"{name}_{measure}": f"{getattr(found, measure):.4f}" for name, found in reached.items()}
    save_checkpoint(model, output, metadata)
    kept.unlink()
    lines = {**metadata, "weights": f"SHA-256 {weights_digest(model)}", "saved": output}
    print(*(f"{name}: {value}" for name, value in lines.items()), sep="\n")


def _recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that the command line names, with the numbers that it gives."""
    recipe = RECIPES[options.recipe] if options.recipe else SETTINGS[options.setting].recipe
    recipe = recipe.on(options.device)
    numbers = {name: getattr(options, name) for name in ("epochs", "batch_size", "learning_rate")}
    return replace(recipe, **{name: value for name, value in numbers.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.paper.train", description=__doc__)
    parser.add_argument("setting", choices=SETTINGS, help="the network and its data")
    parser.add_argument("--recipe", choices=RECIPES, help="how to train; by default the setting's own")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--data", help="folder or archive of the data set; by default its usual place")
    parser.add_argument("--output", help="the file to write; by default SETTING.safetensors, here")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and augmentation")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    run_command(main)
