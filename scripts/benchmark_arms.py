"""The arms of the benchmark: ways to train the same model on the same images, timed alike.

An arm trains whole epochs. Its speed is the median of the epochs after the first, without
validation and saving. ``images_per_second`` in a run's result.json is measured in the same way.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from models.lenet import LeNet
from trainer.process.errors import RunError
from transforms.keyed import seed_of

MEAN, STD = 0.2860, 0.3530
LEARNING_RATE, MOMENTUM = 0.0002, 0.9  # low, so that one repeated batch is not memorised
PAD = {"name": "Pad", "padding": 2}
CROP = {"name": "RandomCrop", "size": 32, "padding": 2}
FLIP = {"name": "RandomHorizontalFlip"}
NORMALIZE = {"name": "Normalize", "mean": [MEAN], "std": [STD]}


@dataclass(frozen=True)
class Task:
    """What every arm trains on: images (N, 1, 28, 28) uint8 and labels (N,) int64, on the CPU.

    root: the folder with the files of these images. runs: the folder for what an arm writes.
    workers: the number of processes that load images for Lightning and timm.
    """

    images: Tensor
    labels: Tensor
    batch_size: int
    device: torch.device
    root: Path
    runs: Path
    workers: int = 2


@dataclass(frozen=True)
class Outcome:
    """What an arm did in all epochs, and its speed: the median of all epochs but the first."""

    images_per_second: float
    images: int
    steps: int
    loss: float  # mean of the last epoch


@dataclass(frozen=True)
class Run:
    """A run of the command: its folder, what it wrote there, and the seconds that it took."""

    folder: Path
    result: dict[str, Any]
    last: dict[str, Any]  # the line of metrics.jsonl that ends the last epoch
    seconds: float


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed_epochs(
    device: torch.device, epochs: int, epoch: Callable[[], tuple[int, int, float]]
) -> Outcome:
    """Call ``epoch`` ``epochs`` times. It trains one epoch, and returns images, steps and loss."""
    speeds, images, steps, loss = [], 0, 0, 0.0
    for _ in range(epochs):
        synchronise(device)
        started = time.perf_counter()
        done, taken, loss = epoch()
        synchronise(device)
        speeds.append(done / (time.perf_counter() - started))
        images, steps = images + done, steps + taken
    return Outcome(statistics.median(speeds[1:] or speeds), images, steps, loss)


def new_model(task: Task) -> nn.Module:
    """LeNet with the weights that the framework draws for seed 0."""
    torch.manual_seed(seed_of(0, "weights"))
    return LeNet(num_classes=10, in_channels=1).to(task.device)


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of every arm; the framework fuses it by itself."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def bare_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
) -> tuple[int, int, float]:
    """Train by a bare loop over batches on the device; return images, steps and mean loss."""
    loss_fn, images, steps, total = nn.CrossEntropyLoss(), 0, 0, torch.zeros((), device=device)
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), labels)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        images, steps = images + len(inputs), steps + 1
    return images, steps, total.item() / steps


def computing_alone(task: Task, images: int, epochs: int, tuned: bool = False) -> Outcome:
    """Forward, loss, backward and step on one batch: no way of loading can be faster.

    tuned: with the memory layout and the optimizer that the framework chooses on a CPU.
    """
    model, size = new_model(task).train(), task.batch_size
    inputs = nn.functional.pad(task.images[:size], [2] * 4).to(task.device)
    inputs, optimizer = (inputs / 255 - MEAN) / STD, new_optimizer(model)
    if tuned and task.device.type == "cpu":
        model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=True
        )
    batches = [(inputs, task.labels[:size].to(task.device))] * (images // size)
    return timed_epochs(
        task.device, epochs, lambda: bare_steps(model, optimizer, batches, task.device)
    )


def by_hand(task: Task, images: int, epochs: int) -> Outcome:
    """A hand-written loop: images stay on the device; each batch is cropped and flipped there."""
    model = new_model(task).train()
    optimizer, size = new_optimizer(model), task.batch_size
    resident = nn.functional.pad(task.images[:images], [2] * 4).to(task.device)
    labels = task.labels[:images].to(task.device)
    window = torch.arange(32, device=task.device)
    channel = torch.zeros(1, dtype=torch.int64, device=task.device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.split(torch.randperm(images, device=task.device), size)[: images // size]:
            padded = nn.functional.pad(resident[rows], [2] * 4)  # (B, 1, 36, 36)
            tops = torch.randint(0, 5, (size, 1), device=task.device) + window
            lefts = torch.randint(0, 5, (size, 1), device=task.device) + window
            sample = torch.arange(size, device=task.device)[:, None, None, None]
            crop = padded[sample, channel, tops[:, None, :, None], lefts[:, None, None, :]]
            chosen = torch.rand(size, 1, 1, 1, device=task.device) < 0.5
            crop = torch.where(chosen, crop.flip(-1), crop)
            yield (crop.float() / 255 - MEAN) / STD, labels[rows]

    return timed_epochs(
        task.device, epochs, lambda: bare_steps(model, optimizer, batches(), task.device)
    )


class Pictures(torch.utils.data.Dataset[tuple[Any, int]]):
    """Images as torchvision's datasets give them: each becomes a PIL picture, then a tensor."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[..., Any]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture = Image.fromarray(self.images[index, 0].numpy())
        return self.transform(picture), int(self.labels[index])


def tutorial_loader(task: Task, images: int, workers: int) -> torch.utils.data.DataLoader[Any]:
    """The DataLoader of the tutorials, with the transforms of every arm."""
    v1 = torchvision.transforms
    transform = v1.Compose(
        [
            v1.Pad(2),
            v1.RandomCrop(32, padding=2),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize([MEAN], [STD]),
        ]
    )
    return torch.utils.data.DataLoader(
        Pictures(task.images[:images], task.labels[:images], transform),
        batch_size=task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=task.device.type == "cuda",
    )


def tutorial(task: Task, images: int, epochs: int, workers: int) -> Outcome:
    """The training loop of PyTorch's tutorials over a DataLoader."""
    model, loader = new_model(task).train(), tutorial_loader(task, images, workers)
    optimizer, loss_fn = new_optimizer(model), nn.CrossEntropyLoss()

    def epoch() -> tuple[int, int, float]:
        done, steps, running_loss = 0, 0, 0.0
        for inputs, labels in loader:
            inputs, labels = inputs.to(task.device), labels.to(task.device)
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            done, steps = done + len(inputs), steps + 1
        return done, steps, running_loss / steps

    return timed_epochs(task.device, epochs, epoch)


def lightning(task: Task, images: int, epochs: int) -> Outcome:
    """Lightning's Trainer as on its first page, with its default bar, checkpoints and logger."""
    package = importlib.import_module("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    speeds: list[float] = []
    count = {"images": 0, "steps": 0, "started": 0.0}
    losses: list[Tensor] = []

    class Module(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = new_model(task)

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
            self.log("train_loss", loss)
            count["images"], count["steps"] = count["images"] + len(batch[0]), count["steps"] + 1
            losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return new_optimizer(self.model)

        def on_train_epoch_start(self) -> None:
            losses.clear()
            synchronise(task.device)
            count["images"], count["started"] = 0, time.perf_counter()

        def on_train_epoch_end(self) -> None:
            synchronise(task.device)
            speeds.append(count["images"] / (time.perf_counter() - count["started"]))

    with quiet(), warnings.catch_warnings(action="ignore"):
        trainer = package.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if task.device.type == "cuda" else task.device.type,
            devices=1,
            default_root_dir=tempfile.mkdtemp(dir=task.runs),
        )
        trainer.fit(Module(), tutorial_loader(task, images, task.workers))
    done = round(count["images"]) * len(speeds)
    loss = torch.stack(losses).mean().item()
    return Outcome(statistics.median(speeds[1:] or speeds), done, round(count["steps"]), loss)


def timm(task: Task, images: int, epochs: int) -> Outcome:
    """Timm's loader and optimizer, and the step of its train.py; its prefetcher needs CUDA."""
    data, utils, optim = map(importlib.import_module, ("timm.data", "timm.utils", "timm.optim"))
    loader = data.create_loader(
        Pictures(task.images[:images], task.labels[:images], lambda picture: picture),
        input_size=(1, 32, 32),
        batch_size=task.batch_size,
        is_training=True,
        train_crop_mode="rkrc",  # keeps the ratio, then crops at random: timm's nearest to CROP
        hflip=0.5,
        color_jitter=None,
        mean=(MEAN,),
        std=(STD,),
        num_workers=task.workers,
        device=task.device,
        use_prefetcher=task.device.type == "cuda",
        pin_memory=task.device.type == "cuda",
    )
    model, loss_fn = new_model(task).train(), nn.CrossEntropyLoss()
    optimizer = optim.create_optimizer_v2(model, opt="momentum", lr=LEARNING_RATE)

    def epoch() -> tuple[int, int, float]:
        losses, steps = utils.AverageMeter(), 0
        for inputs, labels in loader:
            inputs, labels = inputs.to(task.device), labels.to(task.device)
            loss = loss_fn(model(inputs), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(loss.item(), len(inputs))
            steps += 1
        return int(losses.count), steps, float(losses.avg)

    return timed_epochs(task.device, epochs, epoch)


def framework(task: Task, images: int, epochs: int) -> Outcome:
    """This framework, through its command; it always trains on all images."""
    config = {
        "dataset": {"name": "FashionMNIST", "root": str(task.root)},
        "transforms": {"train": [PAD, CROP, FLIP, NORMALIZE], "eval": [PAD, NORMALIZE]},
        "loader": {"batch_size": task.batch_size, "drop_last": True},
        "model": {"name": "LeNet"},
        "optimizer": {"name": "SGD", "lr": LEARNING_RATE, "momentum": MOMENTUM},
        "metrics": ["accuracy"],
        "train": {"epochs": max(epochs, 3), "device": str(task.device)},
    }
    run = train_by_command(write_config(config, task.runs), (), task.runs)
    return outcome_of(run, task.batch_size)


def write_config(config: dict[str, Any], folder: Path) -> Path:
    """A configuration file in a new folder below ``folder``; JSON is YAML too."""
    file = Path(tempfile.mkdtemp(dir=folder)) / "benchmark.yaml"
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return file


def train_by_command(config: Path, overrides: Iterable[str], runs: Path) -> Run:
    """Run ``python -m trainer.train`` in this process, into a new folder below ``runs``.

    Raises RunError with the command's output if the exit code is not 0.
    """
    folder = Path(tempfile.mkdtemp(dir=runs))
    command = importlib.import_module("trainer.train")  # by name: it is run here, not built upon
    started = time.perf_counter()
    with quiet() as said:
        code = command.main(["--config", str(config), "--runs", str(folder), *overrides])
    seconds = time.perf_counter() - started
    if code:
        raise RunError(f"{config}: training ended with exit code {int(code)}\n{said.getvalue()}")
    (file,) = folder.glob("*/*/result.json")
    last = json.loads((file.parent / "metrics.jsonl").read_text().splitlines()[-1])
    return Run(file.parent, json.loads(file.read_text(encoding="utf-8")), last, seconds)


def outcome_of(run: Run, batch_size: int) -> Outcome:
    """The outcome of a run with ``drop_last``, whose batches are all full, from its files."""
    steps = int(run.last["step"])
    speed, loss = run.result["images_per_second"], run.last["train/loss_epoch"]
    return Outcome(float(speed), steps * batch_size, steps, float(loss))


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Context manager: catch what is printed, and yield it, instead of showing it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


ARMS: dict[str, Callable[[Task, int, int], Outcome]] = {
    "computing alone": computing_alone,
    "computing alone, tuned": partial(computing_alone, tuned=True),
    "by hand": by_hand,
    "DataLoader, 0 workers": lambda task, images, epochs: tutorial(task, images, epochs, 0),
    "DataLoader, 2 workers": lambda task, images, epochs: tutorial(task, images, epochs, 2),
    "Lightning": lightning,
    "timm": timm,
    "framework": framework,
}


def is_installed(arm: str) -> bool:
    """Whether the package of an arm can be imported; true if the arm needs none."""
    package = {"Lightning": "lightning", "timm": "timm"}.get(arm)
    return package is None or importlib.util.find_spec(package) is not None
