"""The studies that the command line knows by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.paper.preset import Preset
from examples.paper.recipes import RECIPES
from examples.paper.reference import Published
from examples.paper.subsets import PAPER
from examples.paper.train import SETTINGS

CHECKPOINTS = Path(__file__).parent / "checkpoints"

_CONVOLUTIONS = ("conv2", "conv3", "conv4", "conv5", "conv6")
_ALL = ("*conv*", "*downsample*")
_NEAREST_RESNET = Published("ResNet-18", "CIFAR-10", same_network=False)
_NOT_THE_PAPER = "Shortened, so not the paper's setting: "


def _of(setting: str, layers: tuple[str, ...], published: Published | None, **changes: Any) -> Preset:
    """A study of a setting's network, trained and fine-tuned as the setting is by default."""
    parts = SETTINGS[setting]
    defaults = {"training": parts.recipe, "fine_tuning": parts.fine_tuning}
    return Preset(setting, setting, layers, published, **{**defaults, **changes})


def _paper(setting: str, layers: tuple[str, ...], published: Published, **changes: Any) -> Preset:
    """A setting at the paper's grid, ranks and hyperparameters, with feature errors over all training images."""
    return _of(setting, layers, published, **{"ranks": "paper", "images": None, **changes})


def _short(preset: Preset, what: str, ending: str = "short", **changes: Any) -> Preset:
    """The same in minutes on two cores, or in hours; `what` says honestly what it is."""
    return replace(preset, name=f"{preset.name}-{ending}", short=_NOT_THE_PAPER + what, **changes)


_GARIPOV_FMNIST = _paper(
    "garipov-fmnist",
    _CONVOLUTIONS,
    Published("GaripovNet", "F-MNIST"),
    checkpoint=CHECKPOINTS / "garipovnet_fmnist.safetensors",
    images=1000,
)
_GARIPOV_CIFAR10 = _paper("garipov-cifar10", _CONVOLUTIONS, Published("GaripovNet", "CIFAR-10"))
_RESNET18_CIFAR10 = _paper("resnet18-cifar10", PAPER, Published("ResNet-18", "CIFAR-10"))
_RESNET18_FMNIST_BLOCKS = _paper("resnet18-fmnist", PAPER, _NEAREST_RESNET)
_RATIOS_TO_99 = (0.1, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99)
_ALL_CONVOLUTIONS: dict[str, Any] = {
    "ratios": _RATIOS_TO_99,
    "runs": 1,
    "images": 500,
    "evaluated": 5000,
    "validated": False,
    "random_starts": False,
    "autocast": True,
}
_GPT_TEXT = _of(
    "gpt-text",
    ("transformer.h.*",),
    None,
    fine_tuning=None,
    methods=("svd", "kronecker", "ttm", "blr"),
    ratios=_RATIOS_TO_99,
    runs=1,
    images=64,
    evaluated=256,
    validated=False,
)
_DIGITS_RESNET: dict[str, Any] = {
    "fine_tuning": None,
    "methods": ("cp", "tucker", "tt", "svd"),
    "ratios": (0.5, 0.75, 0.9, 0.95),
    "runs": 1,
    "threads": 1,
    "random_starts": False,
}

_SHORT_GARIPOV: dict[str, Any] = {
    "ratios": (0.5, 0.75, 0.9),
    "runs": 1,
    "images": 1000,
    "evaluated": 5000,
    "training": RECIPES["garipov-short"],
    "fine_tuning": RECIPES["garipov-fine-tuning-short"],
}
_MEDIUM_GARIPOV: dict[str, Any] = {
    "ratios": (0.5, 0.75, 0.9),
    "runs": 1,
    "fine_tuning": RECIPES["garipov-fine-tuning-medium"],
}
_STRATEGIES_GARIPOV: dict[str, Any] = {
    "ratios": (0.75, 0.9),
    "runs": 1,
    "evaluated": 5000,
    "fine_tuning": RECIPES["garipov-strategies"],
    "strategies": ("paper", "one-cycle", "adam", "distill"),
}
_SHORT_RESNET18: dict[str, Any] = {
    "ratios": (0.5, 0.75, 0.9),
    "runs": 1,
    "images": 200,
    "evaluated": 1000,
    "training": RECIPES["resnet18-short"],
    "fine_tuning": RECIPES["resnet18-fine-tuning-short"],
}
_LESS_TRAINED = "the network is trained for 6 passes over 10 000 images, "
_GARIPOV_CUTS = (
    "3 of 5 levels, 1 of 5 runs, fine-tuned on 2 000 images once instead of on all of them 10 times, in bfloat16, "
    "and 5 000 test images instead of 10 000."
)
_MEDIUM_CUTS = "3 of 5 levels, 1 of 5 runs, fine-tuned for 3 epochs instead of 10, in bfloat16."
_STRATEGIES_CUTS = (
    "2 of 5 levels, 1 of 5 runs, fine-tuned on 10 000 images 3 times instead of on all of them 10 times, in bfloat16, "
    "and 5 000 test images instead of 10 000."
)
_RESNET18_CUTS = (
    "the network is trained for 4 passes over 4 000 images, 3 of 5 levels, 1 of 5 runs, fine-tuned on 500 images once "
    "instead of on all of them 25 times, in bfloat16, and 1 000 test images instead of 10 000."
)

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        _of(
            "digits",
            ("conv2", "conv3", "conv4"),
            Published("GaripovNet", "F-MNIST", same_network=False),
            threads=1,  # more would wait for each other: there is too little to do for two
        ),
        _of(
            "digits-resnet",
            ("layer*",),
            _NEAREST_RESNET,
            checkpoint=CHECKPOINTS / "digits_resnet.safetensors",
            **_DIGITS_RESNET,
        ),
        _of("digits-resnet-sgd", ("layer*",), _NEAREST_RESNET, **_DIGITS_RESNET),
        _GARIPOV_FMNIST,
        _GARIPOV_CIFAR10,
        _RESNET18_CIFAR10,
        _of("resnet18-fmnist", _ALL, _NEAREST_RESNET, **_ALL_CONVOLUTIONS),
        _of("resnet50-fmnist", _ALL, _NEAREST_RESNET, **{**_ALL_CONVOLUTIONS, "evaluated": 2000, "images": 256}),
        _GPT_TEXT,
        _short(_GARIPOV_FMNIST, _GARIPOV_CUTS, **_SHORT_GARIPOV),
        _short(_GARIPOV_FMNIST, _MEDIUM_CUTS, "medium", **_MEDIUM_GARIPOV),
        _short(_GARIPOV_FMNIST, _STRATEGIES_CUTS, "strategies", **_STRATEGIES_GARIPOV),
        _short(_GARIPOV_CIFAR10, _LESS_TRAINED + _GARIPOV_CUTS, **_SHORT_GARIPOV),
        _short(_RESNET18_CIFAR10, _RESNET18_CUTS, **_SHORT_RESNET18),
        _short(_RESNET18_FMNIST_BLOCKS, _RESNET18_CUTS, **_SHORT_RESNET18),
    )
}
