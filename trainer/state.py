"""Where a run stands: what must come back for it to go on as if it had never stopped."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.errors import RunError
from trainer.job import Job
from trainer.resume import settings

SCHEMA = 1


@dataclass
class Mean:
    """A mean over images, summed on the device: reading ``value`` is the only wait."""

    total: Tensor
    images: int = 0

    def add(self, mean: Tensor, images: int) -> None:
        """Count a batch's mean once for each of its images."""
        self.total += mean * images
        self.images += images

    def value(self) -> float:
        """The mean of what was added."""
        return self.total.item() / max(self.images, 1)

    def reset(self) -> None:
        """Begin anew."""
        self.total.zero_()
        self.images = 0


@dataclass
class State:
    """The counters of a run; the rest of its state lies in the job's model, optimizer and schedule.

    epoch counts finished epochs, batch the steps done of the one under way, step all steps.
    """

    epoch_loss: Mean
    logged_loss: Mean  # since the last logged step
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)  # the best epoch's line of metrics.jsonl
    reference: float | None = None  # the monitored value from which early stopping counts
    stale_epochs: int = 0  # epochs since then
    early_stopped: bool = False
    train_seconds: float = 0.0
    speeds: list[float] = field(default_factory=list)  # images/s of each epoch run in one piece
    rates: dict[str, float] = field(default_factory=dict)  # those of the last step, by tag
    saved_at: float = field(default_factory=time.monotonic)  # not kept: clocks start anew


PLAIN = ("epoch", "batch", "step", "best", "reference", "stale_epochs", "early_stopped", "rates")
CLOCKS = ("train_seconds", "speeds")


def new_state(job: Job) -> State:
    """The state of a run that has not begun."""
    return State(Mean(torch.zeros((), device=job.device)), Mean(torch.zeros((), device=job.device)))


def snapshot(job: Job, state: State, metrics_length: int) -> dict[str, Any]:
    """Everything a checkpoint holds: tensors and plain values only."""
    return {
        "schema": SCHEMA,
        "model": job.model.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "schedule": job.schedule.state_dict(),
        "counters": {name: getattr(state, name) for name in PLAIN},
        "clocks": {name: getattr(state, name) for name in CLOCKS},
        "losses": {
            name: (mean.total, mean.images)
            for name, mean in (("epoch", state.epoch_loss), ("logged", state.logged_loss))
        },
        "settings": settings(job.config),
        "classes": list(job.data.classes),
        "split": job.data.split_digest,
        "metrics_length": metrics_length,
    }


def restore(job: Job, content: dict[str, Any]) -> State:
    """Put a snapshot's content back into ``job``; the state to go on from.

    Raises RunError for a content that is no snapshot of such a job.
    """
    try:
        return _restored(job, content)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RunError(f"the checkpoint does not fit this run: {error}") from error


def _restored(job: Job, content: dict[str, Any]) -> State:
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, and this version reads {SCHEMA}")
    job.model.load_state_dict(content["model"])
    job.optimizer.load_state_dict(content["optimizer"])
    job.schedule.load_state_dict(content["schedule"])
    means = {
        name: Mean(total.to(job.device), images)
        for name, (total, images) in content["losses"].items()
    }
    return State(means["epoch"], means["logged"], **content["counters"], **content["clocks"])
