"""The three cases of the benchmark, measured in blocks. A block runs every way of training in turn.

So other programs on the machine slow all ways alike. Ratios are taken within a block, and the
median of the blocks' ratios is the result. The first block only warms up.
"""

import dataclasses
import gzip
import json
import math
import os
import struct
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets import DataError
from datasets.fashion_mnist import FashionMNIST
from datasets.images import read_image
from datasets.rmb import RMB
from models.alexnet import AlexNet
from models.lenet import LeNet
from models.mlp import MLP
from scripts.benchmark_arms import (
    ARMS,
    Outcome,
    Task,
    bare_steps,
    new_optimizer,
    outcome_of,
    synchronise,
    timed_epochs,
    train_by_command,
    write_config,
)
from trainer.process.console import Say
from trainer.process.errors import NonFiniteLoss

ROOT = Path(__file__).resolve().parent.parent
FAST = (
    "computing alone",
    "computing alone, tuned",
    "by hand",
    "framework",
)  # the other arms train on some of the images only


def fashion_task(root: str, batch_size: int, device: torch.device, runs: Path) -> Task:
    """Fashion-MNIST's images, only those that the framework trains on.

    Raises DataError if the files are absent.
    """
    try:
        dataset = FashionMNIST(root, download=False)
    except DataError as error:
        fetch = "python -m trainer.train --config configs/lenet_fashion_mnist.yaml"
        raise DataError(f"{error} Or let the trainer fetch them: {fetch}") from None
    overrides = [f"dataset.root={root}", "train.epochs=1", "loader.batch_size=1024"]
    config = ROOT / "configs" / "lenet_fashion_mnist.yaml"
    run = train_by_command(config, [*overrides, f"train.device={device}"], runs)
    chosen = json.loads((run.folder / "split.json").read_text(encoding="utf-8"))["train"]
    rows = torch.tensor([row for row, name in enumerate(dataset.ids) if name in chosen])
    labels = torch.tensor(dataset.labels)[rows]
    if len(rows) < batch_size:
        raise DataError(f"{root}: {len(rows)} training images are less than a batch.")
    return Task(dataset.images[rows], labels, batch_size, device, Path(root).resolve(), runs)


def measure_fashion(
    task: Task, names: Collection[str], blocks: int, seconds: float, say: Say
) -> dict[str, list[dict[str, Any]]]:
    """The outcomes of each arm, one per block; "computing alone" is first and last in each block.

    An arm works about ``seconds`` per block; the warm-up shows how many images that takes.
    """
    order = [name for name in ARMS if name == "computing alone" or name in names]
    plans: dict[str, tuple[int, int]] = {}
    loaders = {}
    for name in order:
        few = max(task.batch_size * 8, len(task.images) // 8)
        images = len(task.images) if name in FAST else min(len(task.images), few)
        outcome = checked(name, ARMS[name](task, images, 3))
        plans[name] = plan(task, name, outcome.images_per_second * seconds)
        if name.startswith("DataLoader"):
            loaders[int(name.split()[1])] = outcome.images_per_second
            workers = max(loaders, key=lambda count: loaders[count])
            task = dataclasses.replace(task, workers=workers)
        say(f"fashion  warm-up: {name} {outcome.images_per_second:,.0f} images/s")
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
    for block in range(blocks):
        others = order[1:] if block % 2 == 0 else order[:0:-1]
        for name in ["computing alone", *others, "computing alone"]:
            outcome = checked(name, ARMS[name](task, *plans[name]))
            measured[name].append({"block": block, **dataclasses.asdict(outcome)})
        speeds = (f"{name} {rows[-1]['images_per_second']:,.0f}" for name, rows in measured.items())
        say(f"fashion  block {block + 1} of {blocks}, images/s: {'; '.join(speeds)}")
    return measured


def plan(task: Task, name: str, images: float) -> tuple[int, int]:
    """(images per epoch, epochs) whose product is about ``images``; at least 3 epochs."""
    every, batch = len(task.images), task.batch_size
    if name in FAST or images > 3 * every:
        return every, max(3, round(images / every))
    return min(every, max(8 * batch, round(images / 3 / batch) * batch)), 3


def checked(name: str, outcome: Outcome) -> Outcome:
    """Return ``outcome``; raises NonFiniteLoss if it diverged, because then its speed is void."""
    if math.isfinite(outcome.loss):
        return outcome
    raise NonFiniteLoss(f"{name}: the loss became {outcome.loss}; its speed says nothing.")


def measure_step(
    steps: int, blocks: int, device: torch.device, runs: Path, say: Say
) -> dict[str, list[float]]:
    """Microseconds per step of a model that does next to nothing: a list over blocks for each way.

    Softmax regression on batches of 8 images of 4 x 4: almost only the cost of a step remains.
    """
    size, count = 8, 4000
    epochs = 1 + math.ceil(steps / (count // size))  # the first is not counted
    root = write_tiny(runs, count + count // 8)
    normalise = [{"name": "Normalize", "mean": [0.5], "std": [0.25]}]
    config = {
        "dataset": {"name": "FashionMNIST", "root": str(root), "download": False},
        "transforms": {"train": normalise, "eval": normalise},
        "loader": {"batch_size": size, "drop_last": True},
        "model": {"name": "MLP", "hidden": []},
        "optimizer": {"name": "SGD", "lr": 0.0002, "momentum": 0.9},
        "metrics": ["accuracy"],
        "train": {"epochs": epochs, "device": str(device)},
    }
    file = write_config(config, runs)
    dataset = FashionMNIST(str(root), download=False)
    images, labels = dataset.images[:count].to(device), torch.tensor(dataset.labels[:count])
    labels = labels.to(device)

    def gathered() -> Any:
        for rows in torch.split(torch.randperm(count, device=device), size):
            yield images[rows].float().div_(255).sub_(0.5).div_(0.25), labels[rows]

    ready = list(gathered())

    def bare(batches: Callable[[], Any]) -> Outcome:
        model = MLP(10, 1, [4, 4], hidden=[]).to(device).train()
        optimizer = new_optimizer(model)
        return timed_epochs(device, epochs, lambda: bare_steps(model, optimizer, batches(), device))

    ways: dict[str, Callable[[], Outcome]] = {
        "bare loop, batches ready": lambda: bare(lambda: ready),
        "bare loop, batches gathered": lambda: bare(gathered),
        "framework": lambda: outcome_of(train_by_command(file, (), runs), size),
    }
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(blocks + 1):
        for name in list(ways) if block % 2 else list(reversed(ways)):
            outcome = checked(name, ways[name]())
            if block:
                measured[name].append(1e6 * size / outcome.images_per_second)
        if block:
            shown = (f"{name} {times[-1]:.1f}" for name, times in measured.items())
            say(f"step     block {block} of {blocks}, microseconds: {'; '.join(shown)}")
    return measured


def write_tiny(folder: Path, count: int, side: int = 4) -> Path:
    """Images of noise in the files of Fashion-MNIST; returns their root."""
    root = Path(tempfile.mkdtemp(dir=folder))
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for prefix, n in (("train", count), ("t10k", 100)):
        images = torch.randint(0, 256, (n, side, side), dtype=torch.uint8, generator=generator)
        labels = torch.arange(n, dtype=torch.uint8) % 10
        for kind, magic, tensor in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            head = struct.pack(f">{1 + tensor.ndim}i", magic, *tensor.shape)
            with gzip.open(raw / f"{prefix}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + tensor.numpy().tobytes())
    return root


RMB_MODELS: dict[str, tuple[str, Callable[[int], nn.Module], int]] = {
    "LeNet": ("lenet_rmb.yaml", lambda classes: LeNet(classes, 3), 32),
    "AlexNet": ("alexnet_rmb.yaml", lambda classes: AlexNet(classes, 3), 224),
}


def measure_rmb(
    root: str, models: Sequence[str], blocks: int, device: torch.device, runs: Path, say: Say
) -> dict[str, list[dict[str, float]]]:
    """Seconds of 10 epochs on large photographs, and of decoding each once and computing alone.

    Raises DataError if ``root`` is absent, unless it is the default: then notes are drawn.
    """
    dataset = RMB(root, draw_if_absent=True)
    files = [dataset.root / name for name in dataset.ids]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for name in models:
        file, build, side = RMB_MODELS[name]
        overrides = [f"dataset.root={dataset.root}", f"train.device={device}"]
        for block in range(blocks + 1 if name == "LeNet" else 1):
            threads = os.cpu_count() or 1  # as many as the framework reads with
            row = {"decode_1_thread": decode(files, 1), "decode": decode(files, threads)}
            run = train_by_command(ROOT / "configs" / file, overrides, runs)
            steps = int(run.last["step"])
            row["compute"] = compute(build(len(dataset.classes)), side, 16, steps, device)
            row |= {"framework": run.seconds, "steps": steps, "photographs": len(files)}
            if block or name != "LeNet":
                measured[name].append(row)
                say(f"rmb      {name}: " + "; ".join(f"{k} {v:.2f}" for k, v in row.items()))
    return measured


def decode(files: Sequence[Path], threads: int) -> float:
    """Seconds to decode every file once with ``threads`` threads."""
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read_image, files):
            pass
    return time.perf_counter() - started


def compute(
    model: nn.Module, side: int, batch_size: int, steps: int, device: torch.device
) -> float:
    """Seconds of ``steps`` steps on one batch of noise, which lies on the device."""
    model = model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    inputs = torch.randn(batch_size, 3, side, side, device=device)
    batch = (inputs, torch.zeros(batch_size, dtype=torch.int64, device=device))
    bare_steps(model, optimizer, [batch] * 2, device)  # warms up
    synchronise(device)
    started = time.perf_counter()
    bare_steps(model, optimizer, [batch] * steps, device)
    synchronise(device)
    return time.perf_counter() - started
