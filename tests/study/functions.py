"""What the tests' studies evaluate and fine-tune by; here, because spawned workers must be able to import it."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

import tdcompress as td
from tdcompress import methods
from tdcompress.study import Study

METHODS = list(methods.METHODS)[:3]  # enough of them for a study to have several


def network(seed: int = 0) -> nn.Sequential:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    )
    torch.set_rng_state(state)
    return model.eval()


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


def evaluate(model: nn.Module) -> dict[str, float]:
    outputs = model(images())
    return {"mean": outputs.mean().item(), "norm": outputs.norm().item()}


def finetune(model: nn.Module, seed: int) -> nn.Module:
    """One step of gradient descent on random inputs."""
    model(images(seed=seed)).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)
    return model


def calibrate(model: nn.Module) -> nn.Module:
    return td.calibrate(model, [images(8, seed=3)], network(), inplace=True)


def slow(model: nn.Module, seconds: float) -> dict[str, float]:
    time.sleep(seconds)
    return evaluate(model)


def deadly(model: nn.Module, layer: str) -> dict[str, float]:
    """Kills its process where this layer is factorized."""
    if "input" in dict(model.get_submodule(layer).named_children()):
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(model)


def deadly_once(model: nn.Module, file: str) -> dict[str, float]:
    """Kills its process if nobody did before."""
    if len(list(model.modules())) > 7 and not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(model)


def deadly_at_first(model: nn.Module, file: str) -> dict[str, float]:
    """Kills its process if nobody did before, whatever the model."""
    if not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(model)


def failing(model: nn.Module, layer: str) -> dict[str, float]:
    if "input" in dict(model.get_submodule(layer).named_children()):
        raise ZeroDivisionError(f"not with {layer}")
    return evaluate(model)


class Counted:
    """An evaluation that leaves a file for each time that a process unpacks it."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds

    def __setstate__(self, state):
        self.__dict__ = state
        Path(self.folder, f"{os.getpid()}-{time.time_ns()}").touch()

    def __call__(self, model: nn.Module) -> dict[str, float]:
        return slow(model, self.seconds)


def study(**changes) -> Study:
    """A small study: 2 layers × 3 methods × 2 ratios × 2 runs."""
    options = {
        "model": network(),
        "layers": ["0", "3"],
        "methods": METHODS,
        "ratios": (0.3, 0.6),
        "runs": 2,
        "evaluate": evaluate,
        "data": images(4, seed=2),
    }
    return Study(**{**options, **changes})


def slowly(seconds: float, **changes) -> Study:
    return study(evaluate=partial(slow, seconds=seconds), **changes)
