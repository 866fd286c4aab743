"""The models that people bring: time and peak memory of a plan, of a compression, of one large layer, and growth."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tdcompress as td
from examples.paper.models import resnet18, seeded
from tests.benchmarks.costs import in_a_process, peak_megabytes, start_of_peak

PICTURE = Path(__file__).parents[2] / "docs" / "benchmarks" / "size.svg"
_LIMIT = 900  # seconds for a call
_WIDTHS = (128, 256, 512, 768, 1024)  # of encoders of 12 layers: 2 M to 151 M parameters in their linear layers


class Bottleneck(nn.Module):
    """ResNet-50's block: 1×1, 3×3, 1×1 and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + self.shortcut(x)).relu()


def resnet50() -> nn.Module:
    """For images of 224 × 224 (He et al. 2016), with the stride in the 3×3 convolution."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for block in range(count):
            layers.append(Bottleneck(channels, 64 << stage, 2 if stage and not block else 1))
            channels = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def pitch(share: int) -> nn.Module:
    """Six 1-d convolutions of 64 taps over 1024 samples, as CREPE's (Kim et al. 2018), with a share of its channels."""
    layers: list[nn.Module] = []
    before = 1
    for place, channels in enumerate((1024, 128, 128, 128, 256, 512)):
        out = channels // share
        conv = nn.Conv1d(1, out, 64, 4, padding=30) if place == 0 else nn.Conv1d(before, out, 64, padding="same")
        layers += [conv, nn.ReLU(), nn.BatchNorm1d(out), nn.MaxPool1d(2)]
        before = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * before, 360))


def bert(width: int = 768) -> nn.Module:
    """BERT-base's architecture (Devlin et al. 2019), or one of another width."""
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width)
    return BertModel(config)


def gpt2() -> nn.Module:
    """GPT-2 small's architecture (Radford et al. 2019), with its tied head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def _tokens(count: int) -> list[Any]:
    return [{"input_ids": torch.randint(0, 30522, (8, 128))} for _ in range(count // 8)]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], list[Any]]]] = {
    "BERT-base, 12 layers": (bert, _tokens),
    "GPT-2 small": (gpt2, _tokens),
    "six 1-d convolutions of 64 taps": (lambda: pitch(1), lambda count: list(torch.randn(count, 1, 1024).split(64))),
    "the same, an eighth of the channels": (
        lambda: pitch(8),
        lambda count: list(torch.randn(count, 1, 1024).split(64)),
    ),
    "ResNet-18, CIFAR's stem": (
        lambda: resnet18(in_channels=3),
        lambda count: list(torch.randn(count, 3, 32, 32).split(64)),
    ),
    "ResNet-50, 224 × 224": (resnet50, lambda count: list(torch.randn(count, 3, 224, 224).split(16))),
}

# What is done, with which arguments, on how many inputs, and the time and memory to stay below.
CASES: tuple[tuple[str, str, float, int, str], ...] = (
    ("BERT-base, 12 layers", "plan", 0.5, 0, "60 s, 700 MB"),
    ("BERT-base, 12 layers", "compress", 0.5, 256, "480 s, 2000 MB"),
    ("GPT-2 small", "decompose", 0.5, 0, "60 s"),
    ("six 1-d convolutions of 64 taps", "plan", 0.9, 0, "60 s"),
    ("six 1-d convolutions of 64 taps", "compress", 0.9, 256, "300 s, 2000 MB"),
    ("the same, an eighth of the channels", "compress", 0.9, 256, "15 s, 500 MB"),
    ("ResNet-18, CIFAR's stem", "compress", 0.9, 256, "90 s"),
    ("ResNet-50, 224 × 224", "plan", 0.75, 0, "120 s"),
    ("ResNet-50, 224 × 224", "compress", 0.75, 64, "600 s, 3000 MB"),
)
_CALLS = {
    "plan": "`plan({ratio})`, by weights",
    "compress": "`compress({ratio})`, {samples} inputs",
    "decompose": '`decompose("*", "svd", {ratio}, on_refusal="skip")`',
}


def size_tables(quick: bool) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """A sentence, titles and cells of each table; and the picture of the growth."""
    note = (
        "Whole models with random weights, each call in a process of its own. Memory is the peak over the model and "
        "the data. 256 inputs of BERT are sequences of 128 tokens."
    )
    cells = []
    for name, task, ratio, samples, goal in CASES[5:6] if quick else CASES:
        given = _CALLS[task].format(ratio=ratio, samples=samples)
        try:
            cost = in_a_process("size", "call", name, task, ratio, samples, limit=_LIMIT)
        except subprocess.TimeoutExpired:
            cells.append([name, given, f"not done after {_LIMIT} s", "", goal])
        else:
            cells.append([f"{name} ({cost['parameters'] / 1e6:.3g} M)", given, *_cost(cost), goal])
    yield note, ["model (parameters)", "call", "time", "memory", "goal"], cells

    note = (
        "One `nn.Linear(4096, 11008)` in bfloat16 to ratio 0.8, and what it takes by `torch.linalg.svd` in float32, "
        "each in a process of its own. Random weights: the slowest spectrum there is."
    )
    cells = []
    for solver in ("ours",) if quick else ("ours", "torch.linalg.svd"):
        cost = in_a_process("size", "linear", solver, (512, 1376) if quick else (4096, 11008))
        cells.append([solver, f"{cost['rank']:.0f}", f"{cost['error']:.6f}", *_cost(cost)])
    yield note, ["solver", "rank", "relative error", "time", "memory"], cells

    note = "`plan(0.5)` by weights of BERT's encoder, 12 layers of growing width."
    grown = [in_a_process("size", "planned", width) for width in (_WIDTHS[:2] if quick else _WIDTHS)]
    cells = [
        [
            str(width),
            f"{cost['parameters'] / 1e6:.3g} M",
            *_cost(cost),
            f"{1e6 * cost['seconds'] / cost['parameters']:.3f} s",
        ]
        for width, cost in zip(_WIDTHS, grown, strict=False)
    ]
    if not quick:
        draw(grown)
    yield note, ["width", "parameters planned", "time", "memory", "time a million parameters"], cells


def _cost(cost: dict[str, float]) -> tuple[str, str]:
    return f"{cost['seconds']:.3g} s", f"{cost['megabytes']:.0f} MB"


def call(name: str, task: str, ratio: float, samples: int) -> dict[str, float]:
    """Seconds and megabytes of one call on a whole model, in this process."""
    build, inputs = MODELS[name]
    model = seeded(build, 0).eval()
    torch.manual_seed(0)
    data = inputs(samples) if samples else None
    td.plan(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten()), 0.5)  # imports and first-call costs
    before, began = start_of_peak(), time.perf_counter()
    if task == "plan":
        plan = td.plan(model, ratio)
        assert plan.cost[1] <= plan.budget
    elif task == "compress":
        td.compress(model, ratio, data=data)
    else:
        td.decompose(model, "*", "svd", ratio, on_refusal="skip")
    seconds = time.perf_counter() - began
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"seconds": seconds, "megabytes": peak_megabytes() - before, "parameters": parameters}


def planned(width: int) -> dict[str, float]:
    """Seconds, megabytes and parameters of a plan of the linear layers of an encoder, in this process."""
    model = seeded(lambda: bert(width).get_submodule("encoder"), 0).eval()
    td.plan(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten()), 0.5)
    before, began = start_of_peak(), time.perf_counter()
    plan = td.plan(model, 0.5)
    seconds = time.perf_counter() - began
    parameters = sum(entry.dense.parameters for entry in plan.layers)
    return {"seconds": seconds, "megabytes": peak_megabytes() - before, "parameters": parameters}


def linear(solver: str, size: tuple[int, int]) -> dict[str, float]:
    """Rank, error, seconds and megabytes of one linear layer in bfloat16, in this process."""
    torch.manual_seed(0)
    layer = nn.Linear(*size, bias=False, dtype=torch.bfloat16)
    rank = int(0.2 * size[0] * size[1]) // sum(size)
    td.decompose(nn.Sequential(nn.Linear(8, 8)), "0", "svd", 0.5)
    before, began = start_of_peak(), time.perf_counter()
    if solver == "ours":
        small = td.decompose(nn.Sequential(layer), "0", "svd", rank=rank).get_submodule("0")
        second, first = small.parameters()
    else:
        left, values, right = torch.linalg.svd(layer.weight.detach().float(), full_matrices=False)
        first, second = (left[:, :rank] * values[:rank]).bfloat16(), right[:rank].bfloat16()
    seconds, megabytes = time.perf_counter() - began, peak_megabytes() - before
    with torch.no_grad():
        dense = layer.weight.float()
        residual = torch.linalg.vector_norm(dense - first.float() @ second.float())
        error = float(residual / torch.linalg.vector_norm(dense))
    return {"rank": rank, "error": error, "seconds": seconds, "megabytes": megabytes}


def draw(grown: list[dict[str, float]]) -> None:
    """Time and memory against the number of parameters, beside lines of proportion."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    size = [one["parameters"] / 1e6 for one in grown]
    for axis, key, title in zip(
        axes, ("seconds", "megabytes"), ("time [s]", "peak memory over the model [MB]"), strict=True
    ):
        values = [one[key] for one in grown]
        axis.loglog(size, values, "o-", label="plan by weights")
        axis.loglog(size, [values[-1] * one / size[-1] for one in size], ":", color="gray", label="in proportion")
        axis.set_xlabel("parameters planned [millions]")
        axis.set_ylabel(title)
        axis.legend(frameon=False)
    figure.savefig(PICTURE)
    plt.close(figure)
