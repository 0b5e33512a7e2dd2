"""Builds a Job from a configuration, and checks everything before the run folder is made."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.depthwise import keep_depthwise_float32
from models.recompute import recompute
from trainer.build.compile import make_fast
from trainer.build.device import check_counts, choose_device
from trainer.build.job import Job
from trainer.build.model import (
    build_loss,
    build_model,
    check_training_sizes,
    first_weights,
    with_first_weights,
)
from trainer.build.notes import notes_on_run
from trainer.build.optimizer import build_average, build_optimizer, build_schedule_of
from trainer.build.precision import (
    HALF,
    Precision,
    build_precision,
    notes_on_precision,
    with_precision,
)
from trainer.build.rehearse import check_batches, check_sharding, choose_layout, keep_dropout_alike
from trainer.build.trial import check_components
from trainer.comparing.grown import note_on_trained
from trainer.config import Config
from trainer.config.notes import as_lines
from trainer.distributed.fsdp import shard
from trainer.distributed.network import from_main, over_processes
from trainer.distributed.processes import (
    agree_on_error,
    is_true_everywhere,
    mark_common,
    world_size,
)
from trainer.distributed.sync_batch_norm import with_synced_batch_norm
from trainer.drawing.fonts import note_on_names
from trainer.input.cut import SHOWN, open_dataset
from trainer.input.data import Data, build_pipelines, check_fills, check_shape, load_data
from trainer.input.loader import Loader, eval_loader, train_loader
from trainer.input.subset import Subset
from trainer.process.console import Say, noting
from trainer.process.errors import ConfigError, RunError
from trainer.process.launch import local_rank
from trainer.process.words import visible

if TYPE_CHECKING:
    from trainer.build.teacher import Distillation

Shape = tuple[int, int, int]
TO_WHITEN = 5000  # images of ``init: whiten``, as many as airbench takes


def fetch(config: Config) -> None:
    """Check the components and download the dataset; each rank calls it before ``prepare``.

    One rank of each machine downloads or draws missing images. Its errors are ignored here, because
    ``prepare`` meets and raises them again.
    """
    require_good_components(config)
    with suppress(Exception):
        if local_rank() == 0:
            open_dataset(config)


def require_good_components(config: Config) -> None:
    """Raise ConfigError for components that cannot be built or do not go together."""
    if faults := check_components(config):
        raise ConfigError(faults)


def prepare(
    config: Config,
    say: Say,
    began: Mapping[str, Any] = MappingProxyType({}),
    data: Data | None = None,
    is_restored: bool = False,
) -> Job:
    """Check and build everything that the configuration names.

    ``began``: data_path.json of the run that goes on, which keeps its memory layout. ``data``: of
    another job with the same dataset, split, transforms and cache; they are used again.
    ``is_restored``: a checkpoint brings the weights: no first ones are read, and none whitened.
    Makes no run folder, but may download or draw the dataset.
    With several ranks, call ``fetch`` before and ``distribute`` after it.
    """
    notes: list[str] = []
    plain, say = say, noting(say, notes)
    check_settings(config, say)
    check_counts(config)
    device = choose_device(config)
    auto, config = config.train.precision == "auto", with_precision(config, device)
    if auto and config.train.precision == "fp32":  # bf16 is told with what else is chosen
        plain("train   precision fp32: auto finds no instructions for bf16 on this device")
    check_sync_batch_norm(config, device)
    if data is None:
        data = prepare_data(with_split(config, began), device, plain)  # it keeps its own notes
    shapes = shapes_of(config, data)
    train = data.subsets["train"]
    config, model, origin = begin_model(config, data, shapes["train"], is_restored, say)
    model.to(device)
    check_training_sizes(config, model, shapes["train"][0])
    loss_fn = build_loss(config, train.labels, data.classes).to(device)
    config, teacher = with_teacher(config, data, shapes["train"])
    precision = prepare_precision(config, model, device, say)
    with precision.autocast():
        kept = with_layout(config, device, began)
        layout = choose_layout(kept, model, loss_fn, one_of_each(data, shapes), device, say)
        if teacher is not None:
            teacher.require_answers(config, train)
    optimizer = build_optimizer(config, model)
    loader = train_loader(config, train, device, layout)
    loader.begin(0, 0)  # its workers read while the rest is built; a resumed run drops that
    check_batches(config, loader, model)
    prepare_layers(config, model, loader, say)
    val_loader = eval_loader(config, data.subsets["val"], device, layout)
    schedule = build_schedule_of(config, optimizer, len(loader))
    average = build_average(config, model, len(loader))
    job = Job(
        config, device, data, shapes["train"], model, loss_fn, optimizer, schedule, loader,
        val_loader, model, precision, average, teacher, notes, origin,
    )  # fmt: skip
    found = notes_on_run(job)
    for line in as_lines(config, found):
        plain(f"note    {line}")
    notes += [f"{note.path}: {note.message}" for note in found]  # a resume has other lines
    if unwritten := note_on_names(data.classes):
        say(f"note    {unwritten}")
    if world_size() == 1:  # else ``distribute`` does it, after it has wrapped the network
        make_fast(job, say)
    return job


def begin_model(
    config: Config, data: Data, shape: Shape, is_restored: bool, say: Say
) -> tuple[Config, nn.Module, dict[str, Any]]:
    """The model, on the CPU; the configuration and the origin by ``with_first_weights``.

    "taken" of the origin is the sentence on what was taken of ``model.weights``. A run that is
    restored needs no first weights any more, nor the run that they came from.
    """
    if is_restored:
        return config, build_model(config, data.classes, shape, say), {}
    weights = first_weights(config)
    config, origin = with_first_weights(config, weights, data.classes)

    def tell(line: str) -> None:
        if weights is not None and line.startswith("weights "):
            origin["taken"] = line.removeprefix("weights ")
        say(line)

    to_whiten = partial(batches_to_whiten, config, data)
    model = build_model(config, data.classes, shape, tell, to_whiten, weights)
    if "run" in origin and (note := note_on_trained(Path(origin["run"]), data.split["test"])):
        say(f"note    model.weights: {note}")
    return config, model, origin


def check_settings(config: Config, say: Say) -> None:
    """Raise ConfigError for bad components, and for what does not go with ``train.parallel``."""
    if world_size() == 1:  # else ``fetch`` has done it
        require_good_components(config)
    if config.train.parallel == "fsdp":
        if world_size() > 1:
            check_sharding(config)
        else:
            say("note    train.parallel=fsdp cuts the model for several processes; this is one")


def with_split(config: Config, began: Mapping[str, Any]) -> Config:
    """The configuration with the kind of split of the run that goes on.

    ``auto`` may choose otherwise if the data have grown.
    """
    if not began:
        return config
    by = {"by": began.get("split_by", "content")}
    return config.model_copy(update={"split": config.split.model_copy(update=by)})


def with_layout(config: Config, device: torch.device, began: Mapping[str, Any]) -> Config:
    """The configuration with the memory layout of the run that goes on, if ``auto`` chose it."""
    layout, same = began.get("channels_last"), began.get("device") == str(device)
    if config.train.channels_last != "auto" or not same or not isinstance(layout, bool):
        return config
    return config.model_copy(
        update={"train": config.train.model_copy(update={"channels_last": layout})}
    )


def check_sync_batch_norm(config: Config, device: torch.device) -> None:
    """Raise ConfigError for batch norm over several ranks that do not compute on GPUs."""
    if config.train.sync_batch_norm and world_size() > 1 and device.type != "cuda":
        message = (
            f"needs GPUs, and the processes compute on the {device}; write false, and each process "
            "normalises by its own images, or start one process"
        )
        raise ConfigError([config.fault("train.sync_batch_norm", message)])


def prepare_data(config: Config, device: torch.device, say: Say) -> Data:
    """The data; prints notes, and the first images that are left out."""
    data = load_data(config, device)
    for note in "\n".join(data.notes).splitlines():
        say(f"note    {visible(note)}")
    if anew := [name for name, subset in data.subsets.items() if subset.cache == "off"]:
        say(f"note    {', '.join(anew)}: not kept, read anew in every epoch")
    for path, reason in data.skipped[:SHOWN]:
        say(f"left out {visible(path)}: {reason}")
    if (more := len(data.skipped) - SHOWN) > 0:
        say(f"left out {more:,} more; result.json and python -m trainer.data list all")
    return data


def shapes_of(config: Config, data: Data) -> dict[str, Shape]:
    """The (C, H, W) of the model's input for train, val and test."""
    for side in ("train", "eval"):
        check_fills(config, side, data.image_channels)
    sides = {"train": "train", "val": "eval", "test": "eval"}
    shapes = {name: check_shape(config, data.subsets[name], side) for name, side in sides.items()}
    if config.evaluation.tta == "flip+shifts" and min(shapes["test"][1:]) < 2:
        message = "moves images by a pixel, and those of transforms.eval have one pixel a side"
        raise ConfigError([config.fault("evaluation.tta", message)])
    channels = shapes["train"][0]
    for shape in shapes.values():
        if shape[0] != channels:
            message = f"gives {shape[0]} channels where transforms.train gives {channels}"
            raise ConfigError([config.fault("transforms.eval", message)])
    return shapes


def batches_to_whiten(config: Config, data: Data) -> Iterator[Tensor]:
    """The first training images, by their number in the dataset, after the eval transforms."""
    train, pipeline = data.subsets["train"], build_pipelines(config, len(data.classes))["eval"]
    plain = replace(train, pipeline=pipeline, images=None)
    for rows in torch.split(train.indices.argsort()[:TO_WHITEN], 64):
        yield plain.sample(rows)[0].flatten(0, -4)


def one_of_each(data: Data, shapes: Mapping[str, Shape]) -> list[Subset]:
    """A split for each shape of images that the model gets; that of training where two have it."""
    found = {shapes[name]: data.subsets[name] for name in ("test", "val")}
    for subset in data.subsets["train"].of_each_size:
        channels, *own = shapes["train"]
        height, width = subset.pipeline.size_at(0) or own
        found[channels, height, width] = subset
    return list(found.values())


def with_teacher(
    config: Config, data: Data, input_shape: Shape
) -> tuple[Config, "Distillation | None"]:
    """The configuration with the teacher's own run folder, and the teacher; None without one."""
    if config.distill is None:
        return config, None
    from trainer.build.teacher import load_teacher  # only runs with a teacher need it

    teacher = load_teacher(config, data.classes, input_shape)
    found = config.distill.model_copy(update={"run": str(teacher.run)})
    return config.model_copy(update={"distill": found}), teacher  # runs/NAME may get a newer run


def prepare_precision(
    config: Config, model: nn.Module, device: torch.device, say: Say
) -> Precision:
    """The precision. Also sets the model up for it, and for ``train.activation_checkpointing``."""
    if config.train.activation_checkpointing and not recompute(model):
        say(f"note    train.activation_checkpointing: {config.model.name} has no blocks to forget")
    precision = build_precision(config, device)
    if config.train.precision in HALF and device.type == "cpu":
        keep_depthwise_float32(model)
    for note in notes_on_precision(config, device):
        say(f"note    {note}")
    return precision


def prepare_layers(config: Config, model: nn.Module, loader: Loader, say: Say) -> None:
    """Set up the layers of dropout and batch norm for several ranks and for micro-batches."""
    if world_size() > 1 or config.train.accumulate > 1:
        keep_dropout_alike(model, loader.subset, loader.delivery.device, say)
    if config.train.sync_batch_norm and world_size() > 1:
        try:
            with_synced_batch_norm(model)
        except ValueError as error:
            raise ConfigError([config.fault("train.sync_batch_norm", str(error))]) from None


def distribute(job: Job, say: Say) -> None:
    """Wrap the job's network by DDP or FSDP, and compile it; every rank calls it."""
    if world_size() == 1:
        return
    half = job.config.train.precision in HALF
    if not is_true_everywhere(half) and not is_true_everywhere(not half):
        message = "is bf16 on some of the processes' devices and fp32 on others; write one of them"
        raise mark_common(ConfigError([job.config.fault("train.precision", message)]))
    subset = job.data.subsets["train"]
    images, _ = subset.sample(subset.extremes[:2])
    if job.config.train.parallel == "ddp":
        job.network = over_processes(job.model, images, job.device)
    else:
        from_main(job.model)
        shard(job.model, images.to(job.device))
        job.optimizer = build_optimizer(job.config, job.model)  # over the shards
        job.schedule = build_schedule_of(job.config, job.optimizer, len(job.train_loader))
    try:
        make_fast(job, say)
    except (ConfigError, RunError) as error:  # such as a missing compiler on all machines
        raise agree_on_error(error) from error.__cause__
