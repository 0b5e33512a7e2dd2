"""What a configuration hardly means, seen with its data, model and device."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from trainer.build.job import Job
from trainer.build.trial import MAX_TRIED_EPOCHS
from trainer.components.averages import SWA, steps_of, unfrozen_batch_norms
from trainer.components.decisions import LEAST, number_of_each
from trainer.components.duration import Duration
from trainer.components.schedulers import build_schedule
from trainer.config import Config
from trainer.config.construct import kind_of_schedule, rate_of
from trainer.config.notes import Note, notes_on_config
from trainer.config.settings import LogSettings
from trainer.distributed.processes import world_size
from trainer.process.words import listed

COUNT_EPOCHS = {"milestones", "step_size", "total_iters", "T_max"}  # arguments of schedulers
SCARCE = 5  # images of a class in val or test, below which a mean over classes is uncertain
STRETCHED = 0.05  # the logarithm of a change of height / width, from which on a note tells
STALE = 0.05  # the share of the initial statistics from which on a note tells


def notes_on_run(job: Job) -> list[Note]:
    """Notes about settings that have no effect in this run, or a strange one."""
    config, steps = job.config, len(job.train_loader)
    found = [*notes_on_config(config), *_on_steps(config, steps), *_on_data(job)]
    found += [*_on_schedule(job, steps), *_on_machine(job), *_on_statistics(job)]
    return found


def never_averages(config: Config, steps: int) -> bool:
    """Whether no update of ``average`` falls into a run with so many steps an epoch."""
    if config.average is None:
        return False
    given = config.average.arguments
    every = Duration.parse(given.get("every", f"{given.get('steps', 1)}st"))
    return config.average.name != "SWA" and steps_of(every, steps) > steps * config.train.epochs


def _on_steps(config: Config, steps: int) -> Iterator[Note]:
    all_steps = steps * config.train.epochs
    if never_averages(config, steps):
        key = "steps" if "steps" in config.average.arguments else "every"  # type: ignore[union-attr]
        value = config.average.arguments[key]  # type: ignore[union-attr]
        message = f"{value} is after the run's {all_steps:,} steps: the average is never updated, "
        yield Note(f"average.{key}", f"{message}and the trained weights are evaluated and saved")
    for index, group in enumerate(config.optimizer.trainer_arguments.get("groups", ())):
        until = Duration.parse(group["until"]) if "until" in group else None
        if until is not None and until.unit == "st" and until.value >= all_steps:
            message = f"{until} is not before the end of the run's {all_steps:,} steps"
            yield Note(f"optimizer.groups.{index}.until", f"{message}: it has no effect")
    for key, every in (("checkpoint", config.checkpoint.every), ("log", config.log.every)):
        if every.unit == "st" and every.value > all_steps and every != LogSettings().every:
            lost = "a killed run begins anew" if key == "checkpoint" else "only epochs are logged"
            yield Note(f"{key}.every", f"{every} is after the run's {all_steps:,} steps: {lost}")


def _on_schedule(job: Job, steps: int) -> Iterator[Note]:
    """Schedules that change no learning rate, tried on a number instead of a model; warm-ups."""
    config = job.config
    if (scheduler := config.scheduler) is None:
        return
    warmup = Duration.parse(scheduler.trainer_arguments.get("warmup") or "1st")
    warm = steps_of(warmup, steps) if scheduler.trainer_arguments.get("warmup") else 0
    left = config.train.epochs - warm // steps
    if left <= 0:
        yield Note("scheduler.warmup", f"fills the run: {scheduler.name} is not used")
    elif scheduler.name not in ("OneCycleLR", "ReduceLROnPlateau"):
        optimizer = torch.optim.SGD(
            [nn.Parameter(torch.zeros(1))], lr=rate_of(config.optimizer) or 1.0
        )
        kind = kind_of_schedule(scheduler)
        tried = build_schedule(kind, scheduler.arguments, optimizer, left, 1, 0)
        rates = set()
        for _ in range(min(left, MAX_TRIED_EPOCHS)):
            rates.add(optimizer.param_groups[0]["lr"])
            optimizer.step()
            tried.after_step()
            tried.after_epoch(0.0)
        if len(rates) == 1 and left <= MAX_TRIED_EPOCHS:
            when = f"{left} epoch{'s' * (left != 1)}" + " after the warm-up" * (warm > 0)
            yield Note("scheduler", f"{scheduler.name} changes no rate in the run's {when}")
            return
    if left > 0 and (moved := warm_up_note(job)):
        yield Note("scheduler.warmup", moved)


def warm_up_note(job: Job) -> str:
    """Which epoch of the run is the scheduler's first, if a warm-up comes before it; else "".

    Only for a scheduler that counts epochs: by its arguments, or LinearLR, which does by default.
    """
    scheduler, steps = job.config.scheduler, job.schedule.warmup_steps
    first = steps // len(job.train_loader)
    if scheduler is None or not first:
        return ""
    if scheduler.name != "LinearLR" and not COUNT_EPOCHS & scheduler.arguments.keys():
        return ""  # such as CosineAnnealingLR, which fills what the warm-up leaves
    note = f"{scheduler.name} begins after the warm-up: its epoch 1 is epoch {first + 1} of the run"
    if milestones := scheduler.arguments.get("milestones"):
        moved = listed([milestone + first for milestone in milestones])
        note += f"; milestones {listed(milestones)} come after epochs {moved}"
    return note


def _on_data(job: Job) -> Iterator[Note]:
    config, loader, classes = job.config, job.train_loader, len(job.data.classes)
    images, largest = len(loader.subset), max(loader.sizes())
    if loader.batch_size > images:
        message = f"is more than the {images:,} training images: an epoch is one step"
        yield Note("loader.batch_size", message)
    for first, size in config.train.sizes_by_epoch.items():
        own = job.input_shape[1:]
        if size != own and min(size[0] - own[0], size[1] - own[1]) >= 0:
            message = f"enlarges images of {own[0]} x {own[1]}: more time, and no more detail"
            yield Note(f"train.sizes.{first}ep", message)
        if abs(math.log(size[0] * own[1] / (size[1] * own[0]))) > STRETCHED:
            alike = max(1, round(size[0] * own[1] / own[0]))
            message = f"{size[0]} x {size[1]} stretches images of {own[0]} x {own[1]}, in training"
            yield Note(f"train.sizes.{first}ep", f"{message} only; write [{size[0]}, {alike}]")
    if config.train.accumulate > largest:
        yield Note("train.accumulate", f"can cut a batch of {largest} into {largest} parts at most")
    for index, metric in enumerate(config.metrics):
        if metric.name == "top_k" and metric.arguments.get("k", 5) >= classes:
            yield Note(f"metrics.{index}", f"top_k is always 1 with {classes} classes; write k: 1")
    if rare := _without_threshold(job):
        message = (
            f"val has too few images with, or without, {rare} to choose a threshold: 0.5 stays"
        )
        yield Note("split", message)
    means = [m.name for m in config.metrics if m.name in ("macro_f1", "precision", "recall")]
    few = [f"{told} in {name}" for name in ("val", "test") if (told := _small_classes(job, name))]
    if means and few:
        message = f"each class counts alike in {listed(means)}, with fewer than {SCARCE} images of"
        yield Note("metrics", f"{message} {listed(few)}: one image can move it far")
    if config.split.pool and "test" not in job.data.dataset.parts:
        yield Note("split.pool", "has no effect: the dataset has no official test set")


def _without_threshold(job: Job) -> str:
    """The labels, of several an image, that fewer than LEAST val images have, or lack, as words."""
    if not job.data.several_labels:
        return ""
    labels = job.data.subsets["val"].labels
    counts = zip(job.data.classes, number_of_each(labels, len(job.data.classes)), strict=True)
    few = [f"'{name}' ({n})" for name, n in counts if min(n, len(labels) - n) < LEAST]
    return listed(few[:5] + [f"{len(few) - 5:,} more labels"] * (len(few) > 5)) if few else ""


def _small_classes(job: Job, split: str) -> str:
    """The classes with fewer than SCARCE images in a split, with their numbers, as words."""
    names = job.data.classes
    counts = number_of_each(job.data.subsets[split].labels, len(names))
    few = [f"'{name}' ({n})" for name, n in zip(names, counts, strict=True) if n < SCARCE]
    return listed(few[:5] + [f"{len(few) - 5:,} more classes"] * (len(few) > 5)) if few else ""


def _on_machine(job: Job) -> Iterator[Note]:
    train, workers, loader = job.config.train, job.config.loader.workers, job.train_loader
    kind = nn.modules.batchnorm._BatchNorm
    has_norms = any(isinstance(module, kind) for module in job.model.modules())
    if train.sync_batch_norm and (world_size() == 1 or not has_norms):
        why = "this is one process" if has_norms else "the model has no batch norm"
        yield Note("train.sync_batch_norm", f"has no effect: {why}")
    if workers != "auto" and workers > loader.delivery.workers:
        yield Note("loader.workers", f"plays no part: the images are on the {job.device.type}")
    elif workers != "auto" and workers > len(loader):
        yield Note("loader.workers", f"{workers} share the {len(loader)} batches of an epoch")


def _on_statistics(job: Job) -> Iterator[Note]:
    """A note if evaluation would use much of batch norm's initial statistics.

    Each forward pass in training replaces the share ``momentum`` of the running statistics. After n
    passes, (1 - momentum)^n of the initial ones is left, which say nothing of the images.
    """
    train, loader = job.config.train, job.train_loader
    momenta = [m.momentum for m in unfrozen_batch_norms(job.model) if m.momentum is not None]
    steps = train.epochs * len(loader)
    has_weights = job.config.model.trainer_arguments.get("weights") is not None
    if not momenta or has_weights or isinstance(job.average, SWA):
        return
    kept = 1 - min(momenta)
    left = kept ** (steps * train.accumulate)
    if left <= STALE:
        return
    mends = []
    if 0 < kept < 1:
        epochs = math.ceil(math.log(STALE, kept) / (len(loader) * train.accumulate))
        mends.append(f"train.epochs={epochs}")
    if steps > 1:
        start = f"average={{name: SWA, start: {steps // 2}st}}"
        mends.append(f"{start}, which measures them anew,")
    yield Note(
        "model",
        f"batch norm's momentum is {min(momenta):.2g}: after the run's {steps:,} steps {left:.0%} "
        f"of its statistics are still the initial ones. Evaluation, which uses them, may stay at "
        f"chance; {' or '.join(mends)} avoids that",
    )
