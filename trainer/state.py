"""Where a run stands: what must come back for it to go on as if it had never stopped."""

import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.distributed import world_size
from trainer.environment import device_name
from trainer.errors import RunError
from trainer.job import Job
from trainer.resume import settings
from trainer.run_log import Lengths
from trainer.sharding import is_sharded, model_part, optimizer_part, whole

SCHEMA = 6
SPENT = ("start", "data", "eval", "log", "save")  # what takes time beside the steps' arithmetic
# What reading a state of another form may raise.
FORGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)


@dataclass
class Means:
    """Means over training images, of loss and accuracy: since the last logged step, of the epoch.

    totals: for each of the two the sum of losses, of images predicted right, and of images.
    """

    totals: list[float] = field(default_factory=lambda: [0.0] * 6)

    def add(self, loss: float, correct: float, images: int) -> None:
        """Count a batch: its mean loss, and how many of its images were predicted right."""
        for first in (0, 3):
            self.totals[first] += loss * images
            self.totals[first + 1] += correct
            self.totals[first + 2] += images

    def take_logged(self) -> dict[str, float]:
        """The means since they were last taken, for they begin anew."""
        taken, self.totals = self.totals[:3], [0.0] * 3 + self.totals[3:]
        return _means("", *taken)

    def take_epoch(self) -> dict[str, float]:
        """The means of the epoch, for the next one begins."""
        taken, self.totals = self.totals[3:], self.totals[:3] + [0.0] * 3
        return _means("_epoch", *taken)


def _means(suffix: str, loss: float, correct: float, images: float) -> dict[str, float]:
    mean, accuracy = (loss / images, correct / images) if images else (math.nan, math.nan)
    return {f"train/loss{suffix}": mean, f"train/accuracy{suffix}": accuracy}


@dataclass
class State:
    """The counters of a run; the rest of its state lies in the job's model, optimizer and schedule.

    epoch counts finished epochs, batch the steps done of the one under way, step all steps.
    """

    means: Means = field(default_factory=Means)
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)  # the best epoch's line of metrics.jsonl
    reference: float | None = None  # the monitored value from which early stopping counts
    stale_epochs: int = 0  # epochs since then
    early_stopped: bool = False
    skipped: int = 0  # steps left out because their loss or gradient was no number
    train_seconds: float = 0.0  # of the steps, and what is read, logged and saved between them
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))
    aside: float = 0.0  # what of train_seconds was logging and saving
    speeds: list[float] = field(default_factory=list)  # images/s of each epoch run in one piece
    rates: list[float] = field(default_factory=list)  # those of the last step, a group each
    saved_at: float = field(default_factory=time.monotonic)  # not kept: clocks start anew
    saved: tuple[int, int] | None = None  # the moment of the last checkpoint
    norm: float = math.nan  # the length of the last step's gradient; logged with it, or never

    @contextmanager
    def spending(self, part: str, in_training: bool = False) -> Iterator[None]:
        """Count what the block takes as a part of ``SPENT``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[part] += took
            self.aside += took if in_training else 0.0

    @property
    def moment(self) -> tuple[int, int]:
        """What tells one state of a run from another: after a last step its epoch is yet to end."""
        return self.step, self.epoch


PLAIN = (
    *("epoch", "batch", "step", "best", "reference"),
    *("stale_epochs", "early_stopped", "skipped", "rates"),
)
CLOCKS = ("train_seconds", "seconds", "aside", "speeds")


def snapshot(job: Job, state: State, lengths: Lengths, memory: Any = None) -> dict[str, Any]:
    """Everything that a checkpoint holds: copies of tensors, and plain values.

    ``memory`` is an earlier one that is no longer needed: its tensors are filled anew.
    """
    # A plain model on a CPU has its weights so; the dict keeps its type and its version numbers.
    model = job.model.state_dict()
    for name, weight in model.items():
        kept = memory["model"][name] if memory else None
        model[name] = copied(weight, kept) if memory else copied(weight).contiguous()
    return {
        "model": model,
        "schema": SCHEMA,
        "optimizer": copied(job.optimizer.state_dict(), memory and memory["optimizer"]),
        "schedule": copied(job.schedule.state_dict()),
        "scaler": job.precision.scaler.state_dict(),  # of fp16; else empty
        "average": copied(job.average and job.average.state_dict(), memory and memory["average"]),
        "teacher": job.teacher and job.teacher.digest,
        "counters": copied({name: getattr(state, name) for name in PLAIN}),
        "clocks": {
            **copied({name: getattr(state, name) for name in CLOCKS}),
            "events_length": lengths.events,  # of equal runs, only one may know an epoch's speed
        },
        "means": copied(state.means.totals),
        "settings": settings(job.config),
        "classes": list(job.data.classes),
        "split": job.data.split_digest,
        "metrics_length": lengths.metrics,
        "made_on": made_on(job),
    }


def copied(value: Any, memory: Any = None) -> Any:
    """A copy in main memory: tensors, and the dicts, lists and tuples that hold them.

    Tensors of ``memory`` are filled where they fit: a gigabyte of new memory takes a second.
    """
    if isinstance(value, Tensor):
        value = whole(value.detach())
        form = value.shape, value.dtype
        if isinstance(memory, Tensor) and (memory.shape, memory.dtype) == form:
            return memory.copy_(value)
        return value.to("cpu", copy=True)
    if isinstance(value, dict):
        kept = memory if isinstance(memory, dict) else {}
        return type(value)({key: copied(item, kept.get(key)) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value


def made_on(job: Job) -> dict[str, Any]:
    """What last bits depend on beside the settings."""
    return {
        "torch": str(torch.__version__),
        "device": device_name(job.device),
        "machine": platform.machine(),
        "processes": world_size(),
    }


def restore(job: Job, content: dict[str, Any]) -> tuple[State, Lengths]:
    """Put a snapshot's content back into ``job``; the state to go on from, how long the logs were.

    Raises RunError for a content that is no snapshot of such a job, whoever made it.
    """
    try:
        return _restored(job, content)
    except FORGED as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"the checkpoint does not fit this run: {reason}.") from error


def _restored(job: Job, content: dict[str, Any]) -> tuple[State, Lengths]:
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, and this version reads {SCHEMA}")
    state = State()
    counters, clocks = content["counters"], dict(content["clocks"])
    lengths = Lengths(content["metrics_length"], clocks.pop("events_length"))
    require_like("counters", counters, {name: getattr(state, name) for name in PLAIN})
    require_like("clocks", clocks, {name: getattr(state, name) for name in CLOCKS})
    if not all(type(length) is int and length >= 0 for length in lengths):
        raise TypeError("the lengths of its logs are none")
    require_like("speeds", clocks["speeds"], [0.0] * len(clocks["speeds"]))
    require_like("means", content["means"], state.means.totals)
    require_like("rates", counters["rates"], [0.0] * len(counters["rates"]))
    require_like("schedule", content["schedule"], job.schedule.state_dict())
    scaler = job.precision.scaler
    require_like("scaler", content["scaler"], scaler.state_dict())
    own = job.optimizer.state_dict()
    groups = zip(content["optimizer"]["param_groups"], own["param_groups"], strict=True)
    optimizer = {  # whether a step is fused does not change what it does
        **content["optimizer"],
        "param_groups": [
            {**kept, "fused": mine["fused"]} if "fused" in mine else kept for kept, mine in groups
        ],
    }
    require_like("optimizer", optimizer["param_groups"], own["param_groups"])
    state.means.totals = [float(total) for total in content["means"]]
    for name, value in (counters | clocks).items():
        setattr(state, name, value)
    steps = len(job.train_loader)
    counts = state.step, state.epoch, state.batch
    if any(type(count) is not int or count < 0 for count in counts):
        raise TypeError("its counters are none")
    if state.step != state.epoch * steps + state.batch or state.batch > steps:
        raise ValueError(f"step {state.step} is not batch {state.batch} after {state.epoch} epochs")
    needed = {"step", "epoch", "val/loss", job.config.train.monitor}
    if state.best and not all(isinstance(state.best[name], int | float) for name in needed):
        raise TypeError("its best epoch has no numbers")
    model = content["model"]
    if is_sharded(job.model):
        model, optimizer = model_part(job.model, model), optimizer_part(job.optimizer, optimizer)
    job.model.load_state_dict(model)
    job.optimizer.load_state_dict(optimizer)
    job.schedule.load_state_dict(content["schedule"])
    scaler.load_state_dict(content["scaler"])
    if job.average is not None:
        job.average.load_state_dict(content["average"])
    fused = bool(job.optimizer.defaults.get("fused"))
    for parameter, kept in job.optimizer.state.items():
        for name, value in kept.items():
            # A fused step takes kind, shape and layout for granted; others may keep rows, columns.
            if not isinstance(value, Tensor):
                if fused and value is not None:
                    raise TypeError(f"{name} is a {type(value).__name__}")
            elif value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
            elif value.numel() == 1 and (name == "step" or not fused):
                continue
            elif fused or not fits(value.shape, parameter.shape):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not that of its weight")
    return state, lengths


def fits(shape: torch.Size, whole: torch.Size) -> bool:
    """Whether ``shape`` is that of the ``whole``, or of its rows or columns."""
    return len(shape) == len(whole) and all(
        n in (1, size) for n, size in zip(shape, whole, strict=True)
    )


def require_like(name: str, value: Any, own: Any) -> None:
    """Raise TypeError where ``value`` is not of the form of ``own``: names, lengths, kinds.

    A scheduler takes whatever names it is given for its own.
    """
    numbers = (int, float)
    if isinstance(own, dict) and own:
        if not isinstance(value, dict) or value.keys() != own.keys():
            raise TypeError(f"its {name} is of another form")
        for key in own:
            require_like(f"{name}.{key}", value[key], own[key])
    elif isinstance(own, list | tuple) and own:
        if not isinstance(value, list | tuple) or len(value) != len(own):
            raise TypeError(f"its {name} is of another form")
        for number, item in enumerate(own):
            require_like(f"{name}.{number}", value[number], item)
    elif isinstance(own, numbers) and not isinstance(own, bool):
        if not isinstance(value, numbers) or not (math.isfinite(value) or math.isinf(own)):
            raise TypeError(f"its {name} is no number")
    elif own is not None and not isinstance(value, type(own)):
        raise TypeError(f"its {name} is a {type(value).__name__}")
