"""The objects of a run, which ``prepare`` builds from a configuration."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.build.precision import Precision
from trainer.components.averages import Average
from trainer.components.schedulers import Schedule
from trainer.config import Config
from trainer.distributed.processes import world_size
from trainer.input.data import Data
from trainer.input.loader import Loader

if TYPE_CHECKING:
    from trainer.build.teacher import Distillation


@dataclass
class Job:
    """The objects of a run.

    input_shape is the model's (C, H, W). network is what training calls: the model itself, or the
    model wrapped for several ranks, compiled, or replayed from a CUDA graph. notes: the notes that
    were printed, for the report. origin: what the model's first weights are, for
    result.json; empty if they were drawn. folder: the run's; None until it is made.
    """

    config: Config
    device: torch.device
    data: Data
    input_shape: tuple[int, int, int]
    model: nn.Module
    loss_fn: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train_loader: Loader
    val_loader: Loader
    network: nn.Module
    precision: Precision
    average: Average | None = None
    teacher: "Distillation | None" = None
    notes: list[str] = field(default_factory=list)  # what has been told
    origin: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def data_path(job: Job) -> dict[str, Any]:
    """How images reach the model (device, cache, workers, layout), as data_path.json holds it."""
    return {
        "device": str(job.device),
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "channels_last": job.train_loader.delivery.channels_last,
        "fused_optimizer": bool(job.optimizer.defaults.get("fused")),
        "split_by": job.data.split.get("by", "content"),
        "train": _loader_facts(job.train_loader),
        "eval": _loader_facts(job.val_loader),
    }


def _loader_facts(loader: Loader) -> dict[str, Any]:
    subset = loader.subset
    first = len(subset.pipeline.fixed)
    where = f" in {loader.delivery.workers} worker processes" if loader.delivery.workers else ""
    transforms = [
        {"name": name, "runs": stage + (where if first <= i < first + subset.early else "")}
        for i, (name, stage) in enumerate(subset.pipeline.description)
    ]
    return {
        "cache": subset.cache,
        "bytes": 0 if subset.images is None else subset.images.nbytes,
        "workers": loader.delivery.workers,
        "batch_size": loader.batch_size,
        "transforms": transforms,
    }
