"""The learning rate over a run: a torch scheduler, and a warm-up before it."""

import copy
import warnings
from pkgutil import resolve_name
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from trainer.tables import SCHEDULERS


class Schedule:
    """Sets the learning rate of ``optimizer`` after every step and every epoch.

    The first ``warmup_steps`` (W) steps rise linearly, step i (from 0) to (i + 1) / (W + 1) of the
    rate at which ``scheduler`` begins; then the scheduler starts, its first epoch being the one in
    which the warm-up ends, or the next when the warm-up ends exactly with the epoch. It advances
    once an epoch, OneCycleLR once a step; None keeps the rate.

    The rates themselves live in the optimizer: to resume, load its state too, in any order.
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
        """Set the rates of the next step."""
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self._warm_up()
        elif isinstance(self.scheduler, OneCycleLR):
            # Behind its end the curve would rise again, so there the rate rests.
            if self.scheduler.last_epoch + 1 < self.scheduler.total_steps:
                self.scheduler.step()

    def after_epoch(self, monitored: float) -> None:
        """Set the rates of the next epoch; ``monitored`` is what ReduceLROnPlateau watches."""
        if self.steps <= self.warmup_steps:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(monitored)
        elif self.scheduler is not None and not isinstance(self.scheduler, OneCycleLR):
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which ``load_state_dict`` goes on exactly."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"steps": self.steps, "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, in a schedule built with the same arguments."""
        self.steps = state["steps"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def _warm_up(self) -> None:
        share = (self.steps + 1) / (self.warmup_steps + 1)  # exactly 1 at the end
        for group, lr in zip(self.optimizer.param_groups, self.first_lrs, strict=True):
            group["lr"] = lr * share


def forecast(
    schedule: Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> list[float] | None:
    """The first group's rate at the beginning of each of the next ``epochs`` epochs.

    None where they depend on what validation will give. The schedule is left as it was.
    """
    if isinstance(schedule.scheduler, ReduceLROnPlateau):
        return None
    before = copy.deepcopy(schedule.state_dict())
    groups = [dict(group) for group in optimizer.param_groups]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's steps in between
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
    name: str | None,
    arguments: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    epochs: int,
    steps_per_epoch: int,
    warmup_steps: int,
    mode: str,
) -> Schedule:
    """The schedule of a run of ``epochs`` epochs, ``name`` being in SCHEDULERS or None.

    Where ``arguments`` leave them open, the run decides: CosineAnnealingLR's T_max and
    PolynomialLR's total_iters are the epochs after the warm-up, OneCycleLR's total_steps the steps
    after it and its max_lr the optimizer's lr, ReduceLROnPlateau's mode is ``mode`` (min or max).
    A max_lr is that of the groups that have the optimizer's lr: others keep their proportion to it.
    A warm-up that fills the run leaves the scheduler unused. Raises ValueError for one longer than
    the run, and what the scheduler's constructor raises.
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
    open_arguments: dict[str, dict[str, Any]] = {
        "CosineAnnealingLR": {"T_max": epochs_left},
        "PolynomialLR": {"total_iters": epochs_left},
        "OneCycleLR": {
            "max_lr": [group["lr"] for group in optimizer.param_groups],
            "total_steps": max(steps - warmup_steps, 1),
        },
        "ReduceLROnPlateau": {"mode": mode},
    }
    own = optimizer.defaults["lr"]
    if name == "OneCycleLR" and isinstance(arguments.get("max_lr"), int | float) and own:
        shares = [group["lr"] / own for group in optimizer.param_groups]
        if any(share != 1 for share in shares):  # else torch gives every group the same
            top = arguments["max_lr"]
            arguments = {**arguments, "max_lr": [top * share for share in shares]}
    scheduler_class = resolve_name(SCHEDULERS[name])
    scheduler = scheduler_class(optimizer, **{**open_arguments.get(name, {}), **arguments})
    return Schedule(optimizer, scheduler, warmup_steps)
