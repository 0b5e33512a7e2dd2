"""Measures the step with precision, compiler and memory savers, next to the plain step."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from scripts.benchmark_arms import synchronise
from scripts.benchmark_cases import write_tiny
from trainer.build.prepare import prepare
from trainer.config import load_config
from trainer.loop.guard import Guard
from trainer.loop.step import new_task, train_steps
from trainer.process.console import Say
from trainer.process.errors import ConfigError

VARIANTS: Mapping[str, Sequence[str]] = {
    "plain": (),
    "tf32": ("train.precision=tf32",),
    "bf16": ("train.precision=bf16",),
    "fp16": ("train.precision=fp16",),
    "compile: true": ("train.compile=true",),
    "compile: reduce-overhead": ("train.compile=reduce-overhead",),
    "compile: true, bf16": ("train.compile=true", "train.precision=bf16"),
    "cuda_graphs": ("train.cuda_graphs=true",),
    "activation_checkpointing": ("train.activation_checkpointing=true",),
    "accumulate: 4": ("train.accumulate=4",),
    "channels_last: true": ("train.channels_last=true",),
    "channels_last: false": ("train.channels_last=false",),
    "optimizer.fused: false": ("optimizer.fused=false",),
}
MODELS = {
    "LeNet": "model=LeNet",
    "resnet18": "model={name: torchvision/resnet18}",
}
BATCHES = 4  # of noise, repeated: another case measures the reading of data


def measure_variants(
    batch_size: int, blocks: int, seconds: float, device: torch.device, runs: Path, say: Say
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per step: a list over blocks for each variant of each model, taken in turns.

    Images are 1 x 32 x 32. A variant that this machine refuses is skipped with a message.
    """
    measured: dict[str, dict[str, list[float]]] = {}
    for model, chosen in MODELS.items():
        steps: dict[str, Callable[[int], float]] = {}
        for name, overrides in VARIANTS.items():
            try:
                steps[name] = stepper([chosen, *overrides], batch_size, device, runs)
            except ConfigError as error:
                say(f"skipped  {model}, {name}: {error}")
        counts = {name: max(2, int(seconds / step(2))) for name, step in steps.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for block in range(blocks):
            for name in list(steps) if block % 2 else list(reversed(steps)):
                times[name].append(1000 * steps[name](counts[name]))
            shown = "; ".join(f"{name} {of[-1]:.2f}" for name, of in times.items())
            say(f"variants {model}, block {block + 1} of {blocks}, ms a step: {shown}")
        measured[model] = times
    return measured


def stepper(
    overrides: Sequence[str], batch_size: int, device: torch.device, runs: Path
) -> Callable[[int], float]:
    """A function that does a number of steps and returns the seconds per step."""
    root = write_tiny(Path(tempfile.mkdtemp(dir=runs)), 2 * batch_size)
    file = root / "variants.yaml"
    side = "[{name: Resize, size: [32, 32]}, {name: Normalize, mean: [0.5], std: [0.25]}]"
    file.write_text(
        f"dataset: {{name: FashionMNIST, root: {root}, download: false}}\n"
        f"transforms: {{train: {side}, eval: {side}}}\n"
        f"loader: {{batch_size: {batch_size}, workers: 0, drop_last: true}}\n"
        "optimizer: {name: SGD, lr: 0.0001, momentum: 0.9}\n"
        f"train: {{epochs: 1, device: {device}}}\n"
    )
    job: Any = prepare(load_config(file, overrides), lambda _: None)
    images, labels = next(job.train_loader.epoch())
    batches = [(images.clone(), labels.clone()) for _ in range(BATCHES)]
    guard, done = Guard(job.model, job.optimizer), 0
    task = new_task(job, guard)

    def step(count: int) -> float:
        nonlocal done
        synchronise(device)
        began = time.perf_counter()
        done += sum(1 for _ in train_steps(task, islice(cycle(batches), count), done))
        guard.results(wait=True)
        synchronise(device)
        return (time.perf_counter() - began) / count

    step(3)
    return step
