"""Prepares what a new YAML trains, before it is written: does it start, and what does it take?"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.build.device import choose_device
from trainer.build.model import build_loss, build_model
from trainer.build.optimizer import build_optimizer
from trainer.build.precision import build_precision, computes_in, with_precision
from trainer.build.prepare import prepare
from trainer.config import Config, load_config
from trainer.loop.model_summary import now, summarize
from trainer.process.console import Say
from trainer.run.environment import device_name
from trainer.tuning.first_file import Machine

TIMED = 64  # images in a step that is timed


class Expected(NamedTuple):
    """Seconds of the whole training, and on which device."""

    seconds: float
    device: str


def this_machine(config: Config) -> Machine:
    """What this machine computes with, on the device that ``config`` chooses."""
    device = choose_device(config)
    return Machine(device.type != "cpu", computes_in("bf16", device))


def load_text(text: str, name: str) -> Config:
    """The configuration of a YAML that is not written yet."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(text, encoding="utf-8")
        return load_config(file)


def rehearse_all(config: Config, say: Say) -> Expected:
    """Prepare the training as a run does, and measure it. Prints the split, and notes on the data.

    Raises DataError and ConfigError as a run does; images that are prepared stay in the store.
    """

    def say_of_data(line: str) -> None:
        if line.startswith("left out") or (line.startswith("note") and config.file not in line):
            say(line)

    job = prepare(config, say_of_data)
    try:
        sizes = ", ".join(f"{name} {len(subset):,}" for name, subset in job.data.subsets.items())
        say(f"split   {sizes}")
        return Expected(summarize(job).cost.run_seconds, device_name(job.device))
    finally:
        job.train_loader.close()
        job.val_loader.close()


def time_model(
    config: Config, classes: tuple[str, ...], shape: tuple[int, int, int], n: int
) -> Expected:
    """The time of n training images in each epoch, by random images of ``shape``; none are read."""
    device = choose_device(config)
    config = with_precision(config, device)
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    model = build_model(config, classes, shape).to(device).to(memory_format=layout).train()
    labels = torch.arange(TIMED, device=device) % len(classes)
    loss_fn = build_loss(config, torch.arange(len(classes)), classes).to(device)
    optimizer, precision = build_optimizer(config, model), build_precision(config, device)
    images = torch.rand(TIMED, *shape, device=device).contiguous(memory_format=layout)

    def gradients() -> None:
        with precision.autocast():
            logits = model(images).float()
        loss_fn(logits, labels).backward()

    per_image = min(_seconds_of(gradients, device) for _ in range(3)) / TIMED
    per_step = min(_seconds_of(optimizer.step, device) for _ in range(2))
    an_epoch = n * per_image + n / config.loader.batch_size * per_step
    return Expected(an_epoch * config.train.epochs, device_name(device))


def _seconds_of(work: Callable[[], object], device: torch.device) -> float:
    began = now(device)
    work()
    return now(device) - began
