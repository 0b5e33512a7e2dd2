"""What a checkpoint holds: taken from a job, and put back into one."""

import math
import platform
from typing import Any

import torch
from torch import Tensor

from trainer.build.job import Job
from trainer.distributed.fsdp import full, is_sharded, model_shard, optimizer_shard
from trainer.distributed.processes import world_size
from trainer.loop.state import CLOCKS, PLAIN, State
from trainer.process.errors import RunError
from trainer.run.environment import device_name
from trainer.run.log import Lengths
from trainer.run.resume import settings

SCHEMA = 6
# What reading a state of another form may raise.
FORGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError)


def snapshot(job: Job, state: State, lengths: Lengths, memory: Any = None) -> dict[str, Any]:
    """Everything that a checkpoint holds: copies of tensors, and plain values.

    ``memory`` is an earlier snapshot that is no longer needed: its tensors are filled anew.
    """
    # Weights become contiguous, as in a plain model; the dict keeps its type and version numbers.
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
            "events_length": lengths.events,  # a clock: the event file holds speeds
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
        value = full(value.detach())
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
    """What the last bits of results depend on, besides the settings."""
    return {
        "torch": str(torch.__version__),
        "device": device_name(job.device),
        "machine": platform.machine(),
        "processes": world_size(),
    }


def restore_job(job: Job, content: dict[str, Any]) -> tuple[State, Lengths]:
    """Restore ``job``; returns counters and logs' lengths. Raises RunError if they do not fit."""
    try:
        require_form(job, content)
        state, lengths = counters_of(job, content)
        load_tensors_into(job, content)
        mend_optimizer_state(job.optimizer)
    except FORGED as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"the checkpoint does not fit this run: {reason}.") from error
    return state, lengths


def require_form(job: Job, content: dict[str, Any]) -> None:
    """Raise unless the plain values of ``content`` have the form of the job's own."""
    if content["schema"] != SCHEMA:
        raise ValueError(f"its schema is {content['schema']}, and this version reads {SCHEMA}")
    state, counters, clocks = State(), content["counters"], dict(content["clocks"])
    lengths = content["metrics_length"], clocks.pop("events_length")
    require_like("counters", counters, {name: getattr(state, name) for name in PLAIN})
    require_like("clocks", clocks, {name: getattr(state, name) for name in CLOCKS})
    if not all(type(length) is int and length >= 0 for length in lengths):
        raise TypeError("the lengths of its logs are none")
    require_like("speeds", clocks["speeds"], [0.0] * len(clocks["speeds"]))
    require_like("means", content["means"], state.means.totals)
    require_like("rates", counters["rates"], [0.0] * len(counters["rates"]))
    require_like("schedule", content["schedule"], job.schedule.state_dict())
    require_like("scaler", content["scaler"], job.precision.scaler.state_dict())
    groups = job.optimizer.state_dict()["param_groups"]
    require_like("optimizer", optimizer_content(job, content)["param_groups"], groups)


def counters_of(job: Job, content: dict[str, Any]) -> tuple[State, Lengths]:
    """The counters, and the logs' lengths; raises if they contradict each other."""
    state, clocks = State(), dict(content["clocks"])
    lengths = Lengths(content["metrics_length"], clocks.pop("events_length"))
    state.means.totals = [float(total) for total in content["means"]]
    for name, value in (content["counters"] | clocks).items():
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
    return state, lengths


def optimizer_content(job: Job, content: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's state_dict with this job's ``fused``, which changes no result."""
    own = job.optimizer.state_dict()["param_groups"]
    groups = zip(content["optimizer"]["param_groups"], own, strict=True)
    fused = [{**kept, "fused": mine["fused"]} if "fused" in mine else kept for kept, mine in groups]
    return {**content["optimizer"], "param_groups": fused}


def load_tensors_into(job: Job, content: dict[str, Any]) -> None:
    """Load model, optimizer, schedule, scaler and average."""
    model, optimizer = content["model"], optimizer_content(job, content)
    if is_sharded(job.model):
        model, optimizer = model_shard(job.model, model), optimizer_shard(job.optimizer, optimizer)
    job.model.load_state_dict(model)
    job.optimizer.load_state_dict(optimizer)
    job.schedule.load_state_dict(content["schedule"])
    job.precision.scaler.load_state_dict(content["scaler"])
    if job.average is not None:
        job.average.load_state_dict(content["average"])


def mend_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Bring the optimizer's loaded tensors into their weights' memory layout; raise if unfit.

    A fused step does not check that its state has the weight's shape and layout. Other optimizers
    may keep a row and a column instead of a tensor of the weight's shape.
    """
    fused = bool(optimizer.defaults.get("fused"))
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if not isinstance(value, Tensor):
                if fused and value is not None:
                    raise TypeError(f"{name} is a {type(value).__name__}")
            elif value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()
            elif value.numel() == 1 and (name == "step" or not fused):
                continue
            elif fused or not fits(value.shape, parameter.shape):
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not that of its weight")


def fits(shape: torch.Size, weight_shape: torch.Size) -> bool:
    """Whether each size in ``shape`` is 1 or that of the weight, as for its rows or columns."""
    return len(shape) == len(weight_shape) and all(
        n in (1, size) for n, size in zip(shape, weight_shape, strict=True)
    )


def require_like(name: str, value: Any, own: Any) -> None:
    """Raise TypeError unless ``value`` has the names, lengths and types of ``own``."""
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
