"""Builds the optimizer that a configuration names, its schedule, and the average of weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from models.freeze import matching
from trainer.components import AVERAGES, OPTIMIZERS, is_higher_better
from trainer.components.averages import Average, steps_of
from trainer.components.duration import Duration
from trainer.components.optimizers import Chosen, parameter_groups
from trainer.components.schedulers import Schedule, build_schedule
from trainer.config import Config
from trainer.config.construct import build, kind_of_schedule, rate_of
from trainer.distributed.fsdp import ELEMENTWISE_FUSED, is_sharded
from trainer.process.errors import ConfigError


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are not frozen."""
    component, ours = config.optimizer, config.optimizer.trainer_arguments
    groups = parameter_groups(
        model,
        ours.get("no_decay", False),
        rate_of(component),
        ours.get("layer_decay"),
        chosen_groups(config, model, ours.get("groups", ())),
    )
    in_order = list(model.parameters())
    # The fused step passes over the weights once instead of eight times.
    ways = {"fused", "foreach", "capturable", "differentiable"} & component.arguments.keys()
    fusing = {"cpu": ("SGD", "Adam", "AdamW", "Adagrad"), "cuda": ("SGD", "Adam", "AdamW")}
    has_it = component.name in fusing.get(next(model.parameters()).device.type, ())
    has_it &= not is_sharded(model) or component.name in ELEMENTWISE_FUSED
    fused = {"fused": True} if has_it and not ways else {}
    try:
        built: torch.optim.Optimizer
        built = build(OPTIMIZERS, "optimizer", component, params=groups, in_order=in_order, **fused)
    except ValueError as error:
        raise ConfigError([config.fault("optimizer", str(error))]) from None
    return built


def chosen_groups(
    config: Config, model: nn.Module, groups: Sequence[Mapping[str, Any]]
) -> list[Chosen]:
    """The groups of ``optimizer.groups``. ConfigError for a pattern or group without weights."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    names = [name for name, _ in model.named_parameters()]
    chosen: list[Chosen] = []
    faults = []
    for index, group in enumerate(groups):
        match, path = group["match"], f"optimizer.groups.{index}.match"
        patterns = [match] if isinstance(match, str) else list(match)
        try:
            matched = matching(names, patterns)
        except ValueError as error:
            faults.append(config.fault(path, str(error)))
            continue
        left = {name for name in matched if name in trained}
        if not left:
            faults.append(config.fault(path, "matches frozen parameters only (model.freeze)"))
        elif not left - {name for earlier in chosen for name in earlier.names}:
            message = "all that it matches is in groups before it; let the narrower one come first"
            faults.append(config.fault(path, message))
        settings = {key: value for key, value in group.items() if key != "match"}
        chosen.append(Chosen(" ".join(patterns), left, settings))
    if faults:
        raise ConfigError(faults)
    return chosen


def build_schedule_of(
    config: Config, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Schedule:
    """The learning-rate schedule with its warm-up; constant if the config has no scheduler.

    The direction of ReduceLROnPlateau follows from ``train.monitor``.
    """
    scheduler = config.scheduler
    warmup = scheduler.trainer_arguments.get("warmup") if scheduler else None
    warmup_steps = steps_of(Duration.parse(warmup), steps_per_epoch) if warmup is not None else 0
    arguments = scheduler.arguments if scheduler else {}
    for group in optimizer.param_groups:
        if "until" in group:
            group["last_step"] = steps_of(Duration.parse(group["until"]), steps_per_epoch)
    if scheduler and scheduler.name == "ReduceLROnPlateau":
        mode = "max" if is_higher_better(config.train.monitor) else "min"
        arguments = {"mode": mode, **arguments}
    try:
        return build_schedule(
            kind_of_schedule(scheduler),
            arguments,
            optimizer,
            epochs=config.train.epochs,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=warmup_steps,
        )
    except (ValueError, ArithmeticError) as error:
        message = str(error)
        if isinstance(error, ArithmeticError):  # OneCycleLR divides by the length of its phases
            steps = config.train.epochs * steps_per_epoch
            message = f"a phase of it has no step, as the run has {steps} only; train more epochs"
        raise ConfigError([config.fault("scheduler", message)]) from None


def build_average(config: Config, model: nn.Module, steps_per_epoch: int) -> Average | None:
    """The average of the weights that is evaluated; None if the config has no ``average``."""
    if (component := config.average) is None:
        return None
    if "start" in component.arguments:
        start = steps_of(Duration.parse(component.arguments["start"]), steps_per_epoch)
        steps = config.train.epochs * steps_per_epoch
        if start >= steps:
            message = f"is step {start:,}, and the run ends after {steps:,}: nothing is averaged"
            raise ConfigError([config.fault("average.start", message)])
    built: Average
    built = build(AVERAGES, "average", component, model=model, steps_per_epoch=steps_per_epoch)
    return built
