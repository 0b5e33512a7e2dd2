"""Everything that a run is made of, built from the configuration and checked."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.dropout import draws_elsewhere, drop_out_by_batch
from models.freeze import train_mode
from models.recompute import recompute
from trainer.averages import Average
from trainer.build_model import build_loss, build_model, check_size
from trainer.build_optimizer import build_average, build_optimizer, build_schedule_of
from trainer.compiled import make_fast
from trainer.config import Config
from trainer.console import Say
from trainer.device import choose_device
from trainer.distributed import from_main, met_alike, over_processes, world_size
from trainer.errors import ConfigError
from trainer.launch import local_rank
from trainer.loader import Loader, Part
from trainer.parts import Data, check_shape, eval_loader, load_data, open_dataset, train_loader
from trainer.precision import Precision, build_precision, notes_on_precision
from trainer.schedulers import Schedule
from trainer.sharding import check_sharding, shard
from trainer.sync_batch_norm import with_synced_batch_norm
from trainer.trial import check_components

if TYPE_CHECKING:
    from trainer.distillation import Distillation


@dataclass
class Job:
    """A run's parts, in the order in which they are built. input_shape is the model's (C, H, W).

    network is the model as training calls it; where there are several processes, it speaks to them.
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


def prepare(config: Config, say: Say) -> Job:
    """Check and build everything the configuration names; raises before anything is written."""
    if faults := check_components(config):
        raise ConfigError(faults)
    if config.train.parallel == "fsdp":
        if world_size() > 1:
            check_sharding(config)
        else:
            say("note    train.parallel=fsdp cuts the model for several processes; this is one")
    device = choose_device(config)
    data = load_data(config, device)
    tell(data, say)
    sides = {"train": "train", "val": "eval", "test": "eval"}
    shapes = {name: check_shape(config, data.parts[name], side) for name, side in sides.items()}
    input_shape, train_part = shapes["train"], data.parts["train"]
    for shape in shapes.values():
        if shape[0] != input_shape[0]:
            message = f"gives {shape[0]} channels where transforms.train gives {input_shape[0]}"
            raise ConfigError([config.fault("transforms.eval", message)])
    model = build_model(config, data.classes, input_shape)
    model.to(device)
    loss_fn = build_loss(config, train_part.labels, len(data.classes)).to(device)
    teacher = None
    if config.distill is not None:
        from trainer.distillation import load_teacher  # which builds a model as this does

        teacher = load_teacher(config, data.classes, input_shape)
        found = config.distill.model_copy(update={"run": str(teacher.run)})
        config = config.model_copy(update={"distill": found})  # runs/NAME has a newest run each day
    if config.train.activation_checkpointing and not recompute(model):
        say(f"note    train.activation_checkpointing: {config.model.name} has no blocks to forget")
    precision = build_precision(config, device)
    for note in notes_on_precision(config, device):
        say(f"note    {note}")
    distinct = {shape: data.parts[name] for name, shape in reversed(shapes.items())}
    with precision.autocast():
        channels_last = choose_layout(config, model, loss_fn, list(distinct.values()), device, say)
    optimizer = build_optimizer(config, model)
    batches = train_loader(config, train_part, device, channels_last)
    check_batches(config, batches, model)
    if world_size() > 1 or config.train.accumulate > 1:
        keep_dropout_alike(model, train_part, device, say)
    if config.train.sync_batch_norm and world_size() > 1:
        try:
            with_synced_batch_norm(model)
        except ValueError as error:
            raise ConfigError([config.fault("train.sync_batch_norm", str(error))]) from None
    steps = len(batches)
    job = Job(
        config=config,
        device=device,
        data=data,
        input_shape=input_shape,
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        schedule=build_schedule_of(config, optimizer, steps),
        train_loader=batches,
        val_loader=eval_loader(config, data.parts["val"], device, channels_last),
        network=model,
        precision=precision,
        average=build_average(config, model, steps),
        teacher=teacher,
    )
    if world_size() == 1:  # else once the network speaks with the other processes
        make_fast(job, say)
    return job


def fetch(config: Config) -> bool:
    """Download, or draw, what of the dataset is not there yet: one process of a machine, not all.

    Faults are left to ``prepare``.
    """
    with suppress(Exception):
        if local_rank() == 0 and not check_components(config):
            open_dataset(config)
    return True


def distribute(job: Job, say: Say) -> None:
    """Have the job's network speak with the other processes; all of them must call it."""
    if world_size() == 1:
        return
    part = job.data.parts["train"]
    images, _ = part.sample(part.extremes[:2])
    if job.config.train.parallel == "ddp":
        job.network = over_processes(job.model, images, job.device)
    else:
        from_main(job.model)
        shard(job.model, images.to(job.device))
        job.optimizer = build_optimizer(job.config, job.model)  # of the parts of the weights
        job.schedule = build_schedule_of(job.config, job.optimizer, len(job.train_loader))
    try:
        make_fast(job, say)
    except ConfigError as error:  # such as a compiler that no machine has
        raise met_alike(error) from error.__cause__


def keep_dropout_alike(model: nn.Module, part: Part, device: torch.device, say: Say) -> None:
    """Have dropout drawn for whole batches, of which the model will be given parts."""
    images, _ = part.sample(part.extremes[:2])
    train_mode(model)
    if draws_elsewhere(model, images.to(device)):
        say(
            "note    the model draws random numbers beside its dropout layers: each process, and "
            "each part of a batch, has its own, and another number of them trains otherwise"
        )
    else:
        drop_out_by_batch(model)
    model.eval()


def choose_layout(
    config: Config,
    model: nn.Module,
    loss_fn: nn.Module,
    parts: Sequence[Part],
    device: torch.device,
    say: Say,
) -> bool:
    """Rehearse, and say whether images and weights lie channels last in memory.

    ``auto`` goes by what was measured (DECISIONS.md), not by measuring: a choice that could fall
    otherwise the next time would change last bits. A model that cannot work so is left as it was.
    """
    wanted = config.train.channels_last
    if wanted == "auto":
        has_convolutions = any(parameter.ndim == 4 for parameter in model.parameters())
        wanted = device.type == "cpu" and has_convolutions
    if wanted:
        model.to(memory_format=torch.channels_last)
    try:
        for part in parts:
            rehearse(config, part, model, loss_fn, device, wanted)
    except ConfigError as error:
        if not wanted or config.train.channels_last is True:
            raise
        model.to(memory_format=torch.contiguous_format)
        for part in parts:
            rehearse(config, part, model, loss_fn, device, False)
        reason = str(error.__cause__).partition("\n")[0]
        say(f"note    {config.model.name} cannot keep channels last, and is slower: {reason}")
        return False
    return wanted


@torch.inference_mode()
def rehearse(
    config: Config,
    part: Part,
    model: nn.Module,
    loss_fn: nn.Module,
    device: torch.device,
    channels_last: bool,
) -> None:
    """Take two images through model and loss, as evaluation would, before anything is written.

    Raises ConfigError; where the images' size is at fault, it says which sizes the model takes.
    """
    images, labels = part.sample(part.extremes[:2])
    if images.ndim == 5:  # cut by FiveCrop or TenCrop: one crop of each will do
        images = images[:, 0]
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    model.eval()
    num_classes = len(part.dataset.classes)
    try:
        logits = model(images.to(device)).float()
    except (RuntimeError, ValueError, TypeError) as error:
        channels, height, width = images.shape[-3:]
        check_size(config, model, (channels, height, width))
        raise ConfigError([config.fault("model", f"fails on the first images: {error}")]) from error
    if logits.shape != (len(images), num_classes):
        message = (
            f"gives {tuple(logits.shape)} for {len(images)} images of {num_classes} classes; "
            f"expected logits of shape {(len(images), num_classes)}"
        )
        raise ConfigError([config.fault("model", message)])
    try:
        loss = loss_fn(logits, labels.to(device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        mixed = " (mixed, by MixUp or CutMix)" if labels.ndim == 2 else ""
        message = f"fails on labels of shape {tuple(labels.shape)}{mixed}: {error}"
        raise ConfigError([config.fault("loss", message)]) from error
    if loss.ndim:
        message = f"gives a tensor of shape {tuple(loss.shape)}; expected one number, the mean"
        raise ConfigError([config.fault("loss", message)])


def tell(data: Data, say: Say) -> None:
    """Say what a user should know of the data before trusting a result."""
    for note in data.notes:
        say(f"note    {note}")
    for path, reason in data.skipped:
        say(f"left out {path}: {reason}")


def check_batches(config: Config, loader: Loader, model: nn.Module) -> None:
    """Refuse batches that would fail in the first epoch."""
    if not len(loader):
        message = f"is more than the {len(loader.part)} training images, and drop_last drops them"
        raise ConfigError([config.fault("loader.batch_size", message)])
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    smallest = min(loader.sizes())
    shared, processes = smallest // world_size(), world_size()
    if config.train.sync_batch_norm and processes > 1:
        if shared < 1:
            message = (
                f"leaves a batch of {smallest} for {processes} processes, of which each needs an "
                "image for batch norm; set loader.drop_last=true or another batch size"
            )
            raise ConfigError([config.fault("loader.batch_size", message)])
    elif shared // max(min(config.train.accumulate, shared), 1) <= 1:
        each = f", cut into {processes} processes" if processes > 1 else ""
        message = (
            f"leaves a batch of {smallest}{each}: one image alone, whose variance batch norm can't "
            "take; set loader.drop_last=true or another batch size"
        )
        raise ConfigError([config.fault("loader.batch_size", message)])
