"""The learning rate over a run: a warm-up, and then a scheduler of torch."""

import copy
import math
import warnings
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from trainer.components import SCHEDULERS


class Schedule:
    """Sets the learning rate of ``optimizer`` after every step and every epoch.

    In the first ``warmup_steps`` (W) steps the rate rises linearly: step i (from 0) has
    (i + 1) / (W + 1) of the rate at which ``scheduler`` begins. Then the scheduler starts. The
    first epoch of the scheduler is the one in which the warm-up ends, or the next one if both end
    together. It advances once per epoch, OneCycleLR once per step; without one the rate stays.

    A group of the optimizer that has a "last_step" has rate 0 after it.

    The optimizer holds the rates: to resume, load its state too; the order does not matter.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None = None,
        warmup_steps: int = 0,
    ) -> None:
        self.optimizer, self.scheduler, self.warmup_steps = optimizer, scheduler, warmup_steps
        self.first_lrs = [group["lr"] for group in optimizer.param_groups]
        self.steps = 0
        self._warm_up()

    def after_step(self) -> None:
        """Set the learning rates of the next step."""
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self._warm_up()
        elif isinstance(self.scheduler, OneCycleLR):
            # After its end the curve would rise again, so the rate stays at its last value.
            if self.scheduler.last_epoch + 1 < self.scheduler.total_steps:
                self.scheduler.step()
        self._end_groups()

    def after_epoch(self, monitored: float) -> None:
        """Set the learning rates of the next epoch; ReduceLROnPlateau compares ``monitored``."""
        if self.steps <= self.warmup_steps:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(monitored)
        elif self.scheduler is not None and not isinstance(self.scheduler, OneCycleLR):
            self.scheduler.step()
        self._end_groups()

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which ``load_state_dict`` continues exactly."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"steps": self.steps, "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``; the schedule must have been built with the same arguments."""
        self.steps = state["steps"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def _warm_up(self) -> None:
        share = (self.steps + 1) / (self.warmup_steps + 1)  # exactly 1 at the end
        for group, lr in zip(self.optimizer.param_groups, self.first_lrs, strict=True):
            group["lr"] = lr * share

    def _end_groups(self) -> None:
        for group in self.optimizer.param_groups:
            if self.steps >= group.get("last_step", math.inf):
                group["lr"] = 0.0


def forecast(
    schedule: Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> list[float] | None:
    """The first group's learning rate at the beginning of each of the next ``epochs`` epochs.

    Returns None for ReduceLROnPlateau, whose rates depend on results. The schedule does not change.
    """
    if isinstance(schedule.scheduler, ReduceLROnPlateau):
        return None
    before = copy.deepcopy(schedule.state_dict())
    groups = [dict(group) for group in optimizer.param_groups]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the optimizer does no steps
        for _ in range(epochs):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            for _ in range(steps_per_epoch):
                schedule.after_step()
            schedule.after_epoch(0.0)
    schedule.load_state_dict(before)
    for group, old in zip(optimizer.param_groups, groups, strict=True):
        group.update(old)
    return rates


def build_schedule(
    name: str | Callable[..., Any] | None,
    arguments: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_steps: int,
) -> Schedule:
    """The schedule of a run of ``epochs`` epochs; ``name`` is a key of SCHEDULERS, a class or None.

    The run gives the arguments that are missing: T_max (CosineAnnealingLR) and total_iters
    (PolynomialLR) are the epochs after the warm-up; total_steps (OneCycleLR) is the steps after the
    warm-up, and max_lr the optimizer's lr. A max_lr holds for the groups that have the optimizer's
    lr; the other groups keep their proportion to it. If the warm-up fills the run, the scheduler is
    not used. Raises ValueError if the warm-up is longer than the run, and what the scheduler's
    constructor raises.
    """
    steps = epochs * steps_per_epoch
    if warmup_steps > steps:
        raise ValueError(
            f"a warm-up of {warmup_steps} steps is longer than the run's {steps} "
            f"({epochs} epochs of {steps_per_epoch})"
        )
    if name is None:
        return Schedule(optimizer, None, warmup_steps)
    epochs_left = max(epochs - warmup_steps // steps_per_epoch, 1)
    open_arguments: dict[object, dict[str, Any]] = {
        "CosineAnnealingLR": {"T_max": epochs_left},
        "PolynomialLR": {"total_iters": epochs_left},
        "OneCycleLR": {
            "max_lr": [group["lr"] for group in optimizer.param_groups],
            "total_steps": max(steps - warmup_steps, 1),
        },
    }
    own = optimizer.defaults["lr"]
    if name == "OneCycleLR" and isinstance(arguments.get("max_lr"), int | float) and own:
        shares = [group["lr"] / own for group in optimizer.param_groups]
        if any(share != 1 for share in shares):  # torch gives every group the same max_lr
            top = arguments["max_lr"]
            arguments = {**arguments, "max_lr": [top * share for share in shares]}
    scheduler_class = resolve_name(SCHEDULERS[name]) if isinstance(name, str) else name
    scheduler = scheduler_class(optimizer, **{**open_arguments.get(name, {}), **arguments})
    return Schedule(optimizer, scheduler, warmup_steps)
