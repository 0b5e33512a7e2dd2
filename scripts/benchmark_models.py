"""Measures the framework's step next to that of a bare loop, for the recipes in ``configs``."""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scripts.benchmark_cases import write_tiny
from trainer.build.precision import computes_in
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps
from trainer.process.console import Say
from trainer.process.errors import UsageError
from trainer.process.start import give_back_freed_memory

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# name -> recipe, classes and side of its images before any transform, settings that differ
MODELS: Mapping[str, tuple[str, int, int, Sequence[str]]] = {
    "mlp_fashion_mnist": ("mlp_fashion_mnist", 10, 28, ()),
    "lenet_fashion_mnist": ("lenet_fashion_mnist", 10, 28, ()),
    "lenet_rmb": ("lenet_rmb", 2, 32, ()),
    "lenet_cifar10": ("lenet_cifar10", 10, 32, ()),
    "alexnet_cifar10": ("alexnet_cifar10", 10, 32, ()),
    "vgg11_fashion_mnist": ("vgg11_fashion_mnist", 10, 28, ()),
    "vgg16_cifar10": ("vgg16_cifar10", 10, 32, ()),
    "alexnet_rmb": ("alexnet_rmb", 2, 256, ()),
    "resnet18_finetune": ("resnet18_finetune", 2, 256, ("model.weights=null",)),
    "resnet18, 32 x 32": ("vgg16_cifar10", 10, 32, ("model=torchvision/resnet18",)),
    "mobilenet_v3_small": ("alexnet_rmb", 2, 256, ("model=torchvision/mobilenet_v3_small",)),
    "vgg16_rmb": ("vgg16_rmb", 2, 256, ()),
}
PRECISIONS = ("fp32", "bf16")  # bf16 where the device has instructions for it
Batches = Iterable[tuple[Tensor, Tensor]]
Row = dict[str, tuple[float, float]]  # arm -> seconds of a step: by the clock, of the processors


def measure_models(
    seconds: float, names: Sequence[str], device: torch.device, runs: Path, say: Say
) -> dict[str, dict[str, list[Row]]]:
    """For each model and precision, rows of an arm's seconds per step; the arms take turns.

    A turn takes 0.1 s or one step; there are turns for about ``seconds``, and at least three.
    """
    measured: dict[str, dict[str, list[Row]]] = {}
    if unknown := [name for name in names if name not in MODELS]:
        raise UsageError(f"--models {unknown[0]}: expected some of {', '.join(MODELS)}")
    able = [name for name in PRECISIONS if name == "fp32" or computes_in(name, device)]
    for name in names or MODELS:
        measured[name] = {}
        for precision in able:
            rows = measured[name][precision] = in_turns(
                arms_of(name, precision, device, runs), seconds
            )
            give_back_freed_memory()
            ratios = [row["framework"][0] / row["bare"][0] for row in rows]
            own = 1000 * statistics.median(row["framework"][0] for row in rows)
            shown = f"{statistics.median(ratios):.3f} of the bare loop"
            say(f"models   {name}, {precision}: {own:.1f} ms, {shown}, {len(rows)} turns")
    return measured


def in_turns(arms: Mapping[str, Callable[[int], None]], seconds: float) -> list[Row]:
    """Seconds per step of each arm, in turns whose order alternates."""
    took = {}
    for name, do in arms.items():
        do(2)
        began = time.perf_counter()
        do(1)
        took[name] = time.perf_counter() - began
    steps = max(1, round(0.1 / max(took.values())))
    rows: list[Row] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(rows) < 3:
        row = {}
        for name in list(arms) if len(rows) % 2 else list(arms)[::-1]:
            began, worked = time.perf_counter(), time.process_time()
            arms[name](steps)
            row[name] = (
                (time.perf_counter() - began) / steps,
                (time.process_time() - worked) / steps,
            )
        rows.append(row)
    return rows


def arms_of(
    name: str, precision: str, device: torch.device, runs: Path
) -> dict[str, Callable[[int], None]]:
    """The two arms: functions that do a number of steps of this model on noise."""
    recipe, classes, side, more = MODELS[name]
    file = CONFIGS / f"{recipe}.yaml"
    count = 2 * load_config(file).loader.batch_size
    root = Path(tempfile.mkdtemp(dir=runs))
    dataset = f"dataset={{name: ImageFolder, root: {root}}}"
    if side == 28:
        dataset = f"dataset={{name: FashionMNIST, root: {write_tiny(root, count, side)}}}"
    else:
        write_noise(root, classes, count // classes + 1, side)
    settings = [f"train.device={device}", f"train.precision={precision}", "loader.workers=0"]
    settings.append("optimizer.lr=1e-6")  # noise has nothing to learn
    config = load_config(file, [dataset, *settings, *more])
    job: Any = prepare(config, lambda _: None)
    images, labels = next(job.train_loader.epoch())
    batches = [(images.clone(), labels.clone()) for _ in range(2)]
    model = copy.deepcopy(job.model)  # the same weights, in the same layout
    guard = Guard(job.model, job.optimizer, config.train.clip_grad_norm)
    task, done = new_task(job, guard), 0

    def framework(count: int) -> None:
        nonlocal done
        done += sum(1 for _ in train_steps(task, islice(cycle(batches), count), done))
        guard.results(wait=True)

    by_hand = bare_loop(model, config, precision)
    return {
        "bare": lambda count: by_hand(islice(cycle(batches), count)),
        "framework": framework,
    }


def bare_loop(model: nn.Module, config: Any, precision: str) -> Callable[[Batches], None]:
    """A loop that a careful user writes by hand: fused optimizer, channels last, autocast."""
    model.train()
    kind, most = getattr(torch.optim, config.optimizer.name), config.train.clip_grad_norm
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(weights, **config.optimizer.arguments, fused=True)
    loss_fn = nn.CrossEntropyLoss(**config.loss.arguments)
    device = weights[0].device.type
    autocast: Any = nullcontext
    if precision == "bf16":
        autocast = partial(torch.autocast, device, torch.bfloat16)

    def loop(batches: Batches) -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            with autocast():
                loss = loss_fn(model(images), labels)
            loss.backward()
            if most is not None:
                nn.utils.clip_grad_norm_(weights, most)
            optimizer.step()

    return loop


def write_noise(root: Path, classes: int, count: int, side: int) -> None:
    """``count`` images of noise a class, in a folder for each."""
    generator = np.random.default_rng(0)
    for one in range(classes):
        (root / f"{one}").mkdir()
        for number in range(count):
            pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"{one}" / f"{number}.png", compress_level=0)
