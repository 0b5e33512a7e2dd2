"""The settings that may make a run's steps faster on this machine, and why others are not tried."""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from trainer.build.job import Job
from trainer.build.precision import computes_in
from trainer.components.averages import unfrozen_batch_norms

Variant = dict[str, Any]  # such as {"train.precision": "bf16"}
LITTLE_WAITING = 0.03  # of a step's time: if batches take less, other workers cannot make it faster
MOST_WORKERS = 8


def variants_of(job: Job, waits: float) -> tuple[list[Variant], dict[str, str]]:
    """The single settings to try beside the job's own, and why a key has none.

    ``waits``: the share of a step's time in which it waits for its batch, from 0 to 1. Variants
    keep the training: they change rounding and speed, but no batch and no statistics. The compiler
    is last.
    """
    ways: dict[str, Callable[[], list[Any] | str]] = {
        "train.precision": lambda: _precisions(job),
        "train.channels_last": lambda: _layouts(job),
        "train.cuda_graphs": lambda: _graphs(job),
        "loader.workers": lambda: _workers(job, waits),
        "train.threads": lambda: _threads(job),
        "train.accumulate": lambda: _cuts(job),
        "optimizer.fused": lambda: _fused(job),
        "train.compile": lambda: _compilers(job),
    }
    variants: list[Variant] = []
    not_tried = {}
    for key, values_of in ways.items():
        values = values_of()
        if isinstance(values, str):
            not_tried[key] = values
        else:
            variants += [{key: value} for value in values]
    return variants, not_tried


def is_compiled(settings: Variant) -> bool:
    """Whether the settings turn the compiler on."""
    return bool(settings.get("train.compile"))


def cpus() -> tuple[int, int]:
    """The logical and the physical cores that this process may use; equal if not known."""
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    logical = logical or 1
    physical = int(torch.cpu.get_capabilities().get("num_physical_cores", 0)) or logical
    return logical, min(physical, logical)


def _precisions(job: Job) -> list[Any] | str:
    own, device = job.config.train.precision, job.device
    if device.type == "mps":
        return "not known for this device"
    known = ("bf16", "fp16") if device.type == "cpu" else ("tf32", "bf16", "fp16")
    able = [name for name in known if computes_in(name, device)]
    if device.type == "cpu":
        able = [name for name in able if name == "bf16"]  # fp16 was 7 to 15 times slower
    others = [name for name in ("fp32", *able) if name != own]
    return others or f"this {device.type.upper()} reports no faster arithmetic than fp32"


def _layouts(job: Job) -> list[Any] | str:
    if not any(parameter.ndim == 4 for parameter in job.model.parameters()):
        return "the model has no convolution"
    return [not job.train_loader.delivery.channels_last]


def _graphs(job: Job) -> list[Any] | str:
    if job.device.type != "cuda":
        return f"there are none on {job.device.type}"
    if job.config.train.compile:
        return "train.compile is on"
    return [not job.config.train.cuda_graphs]


def _workers(job: Job, waits: float) -> list[Any] | str:
    own, cache = job.train_loader.delivery.workers, job.train_loader.subset.cache
    if cache not in ("ram", "store", "off"):
        return f"the images are on the {job.device.type}"
    if own == 0 and waits < LITTLE_WAITING:
        return f"batches take {waits:.1%} of a step's time"
    logical, _ = cpus()
    most = min(logical, MOST_WORKERS)
    return sorted({0, max(most // 2, 1), most} - {own})


def _threads(job: Job) -> list[Any] | str:
    if job.device.type != "cpu":
        return f"the {job.device.type} does the arithmetic"
    logical, physical = cpus()
    counts = {1, max(logical // 2, 1), physical, logical} - {torch.get_num_threads()}
    return sorted(counts, reverse=True) or "there is one core"


def _cuts(job: Job) -> list[Any] | str:
    own, largest = job.config.train.accumulate, max(job.train_loader.sizes())
    if unfrozen_batch_norms(job.model):
        return "batch norm would see other batches"
    if job.device.type != "cpu":
        return f"smaller pieces are no faster on the {job.device.type}"
    counts = [n for n in (1, 2, 4) if n != own and n * 2 <= max(largest, 2)]
    return counts or f"a batch has {largest} images"


def _fused(job: Job) -> list[Any] | str:
    ways = {"foreach", "capturable", "differentiable"} & job.config.optimizer.arguments.keys()
    if "fused" not in job.optimizer.defaults or ways:
        return f"{job.config.optimizer.name} has no such choice" if not ways else f"{ways} is set"
    return [not job.optimizer.defaults["fused"]]


def _compilers(job: Job) -> list[Any] | str:
    if job.config.train.compile:
        return [False]
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in names if name):
        return "there is no C++ compiler (Debian: apt install g++ python3-dev)"
    if job.device.type == "cuda" and find_spec("triton") is None:
        return "there is no Triton"
    return [True]
