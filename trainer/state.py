"""Where a run stands: what must come back for it to go on as if it had never stopped."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.errors import RunError
from trainer.job import Job
from trainer.resume import settings

SCHEMA = 2


@dataclass
class MeanLoss:
    """Two means over images, since the last logged step and of the epoch, summed on the device.

    Reading one is the only wait for the device. totals: (2,) float32.
    """

    totals: Tensor
    since_logged: int = 0  # images
    in_epoch: int = 0

    def add(self, mean: Tensor, images: int) -> None:
        """Count a batch's mean once for each of its images."""
        self.totals.add_(mean, alpha=images)
        self.since_logged += images
        self.in_epoch += images

    def take_logged(self) -> float:
        """The mean since it was last taken, for it begins anew."""
        mean = self.totals[0].item() / max(self.since_logged, 1)
        self.totals[0].zero_()
        self.since_logged = 0
        return mean

    def of_epoch(self) -> float:
        """The mean of the epoch so far."""
        return self.totals[1].item() / max(self.in_epoch, 1)

    def begin_epoch(self) -> None:
        """Begin the epoch's mean anew."""
        self.totals[1].zero_()
        self.in_epoch = 0


@dataclass
class State:
    """The counters of a run; the rest of its state lies in the job's model, optimizer and schedule.

    epoch counts finished epochs, batch the steps done of the one under way, step all steps.
    """

    loss: MeanLoss
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)  # the best epoch's line of metrics.jsonl
    reference: float | None = None  # the monitored value from which early stopping counts
    stale_epochs: int = 0  # epochs since then
    early_stopped: bool = False
    train_seconds: float = 0.0
    speeds: list[float] = field(default_factory=list)  # images/s of each epoch run in one piece
    rates: list[float] = field(default_factory=list)  # those of the last step, a group each
    saved_at: float = field(default_factory=time.monotonic)  # not kept: clocks start anew


PLAIN = ("epoch", "batch", "step", "best", "reference", "stale_epochs", "early_stopped", "rates")
CLOCKS = ("train_seconds", "speeds")


def new_state(job: Job) -> State:
    """The state of a run that has not begun."""
    return State(MeanLoss(torch.zeros(2, device=job.device)))


def snapshot(job: Job, state: State, metrics_length: int) -> dict[str, Any]:
    """Everything a checkpoint holds: tensors and plain values only."""
    return {
        "schema": SCHEMA,
        "model": job.model.state_dict(),
        "optimizer": job.optimizer.state_dict(),
        "schedule": job.schedule.state_dict(),
        "counters": {name: getattr(state, name) for name in PLAIN},
        "clocks": {name: getattr(state, name) for name in CLOCKS},
        "loss": (state.loss.totals, state.loss.since_logged, state.loss.in_epoch),
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
    for parameter, kept in job.optimizer.state.items():  # fused steps take one layout for granted
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
    totals, since_logged, in_epoch = content["loss"]
    loss = MeanLoss(totals.to(job.device), since_logged, in_epoch)
    return State(loss, **content["counters"], **content["clocks"])
