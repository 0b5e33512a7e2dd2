"""From the configuration to train, val and test: decoded once, ready to be batched."""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from datasets import DATASETS, BrokenImage, DataError, Dataset
from datasets.images import notes_on
from datasets.split import conflicts, manifest
from datasets.split import split as split_dataset
from datasets.words import counted
from trainer.config import Config
from trainer.config.config import components
from trainer.config.construct import build
from trainer.distributed.processes import rank, world_size
from trainer.distributed.shares import Shares
from trainer.input.decode import attempt, in_threads, read_subset
from trainer.input.loader import Delivery, Loader, Order
from trainer.input.subset import Subset
from trainer.process.errors import (
    MAX_FAULTS,
    ComponentError,
    ConfigError,
    Fault,
    OutOfMemory,
    component_place,
    in_plain_words,
    is_of_machinery,
    refusal_of,
    with_cause,
)
from trainer.process.launch import local_world_size
from transforms import TRANSFORMS
from transforms.pipeline import Pipeline

NUMBERED = re.compile(r"\(transform (\d+)\)")  # in the message of a transform's error


@dataclass(frozen=True)
class Data:
    """A dataset, split and decoded: training and evaluation take their batches from it.

    subsets maps train, val and test to their images. skipped lists (path, reason) of the images
    that ``on_broken: skip`` left out. split is the content of
    split.json. notes are lines for the user.
    """

    dataset: Dataset
    subsets: dict[str, Subset]
    skipped: list[tuple[str, str]]
    split: dict[str, Any]
    notes: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label k is ``classes[k]``."""
        return self.dataset.classes

    @cached_property
    def image_channels(self) -> int:
        """Channels of the images before any transform."""
        first = int(self.subsets["train"].indices[0])
        images = self.dataset.images
        return len(self.dataset.image(first) if images is None else images[first])

    @cached_property
    def split_digest(self) -> str:
        """The ``digest_of_split`` of this split."""
        return digest_of_split(self.split)


def digest_of_split(split: dict[str, Any]) -> str:
    """SHA-256 of a split: equal for the same samples in the same order in train, val and test."""
    digest = hashlib.sha256()
    for name, value in split.items():
        samples = "\n".join(map(" ".join, value.items())) if isinstance(value, dict) else value
        digest.update(f"{name}\n{samples}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def load_data(config: Config, device: torch.device) -> Data:
    """Open the dataset, split it, and run the once-per-sample stage of each split's pipeline.

    Raises DataError for data that cannot be used; it names all broken files.
    """
    dataset = open_dataset(config)
    pipelines = build_pipelines(config, num_classes=len(dataset.classes))
    every = range(len(dataset))
    results: Sequence[str | BrokenImage] | None = dataset.digests(every)
    if results is None:
        results = in_threads(lambda i: attempt(dataset.digest, i), every, "reading images")
    digests = [result if isinstance(result, str) else "" for result in results]
    failed = {i: result for i, result in enumerate(results) if isinstance(result, BrokenImage)}
    broken: dict[int, BrokenImage] = {}
    subsets: dict[str, Subset] = {}
    while failed or not subsets:
        broken |= failed  # the rest is split as if these were not there
        usable = [index for index in every if index not in broken]
        try:
            indices = cut(dataset, usable, digests, config)
        except DataError:
            if broken and dataset.on_broken == "error":
                raise BrokenImages(broken.values(), len(dataset)) from None
            raise
        subsets, failed = read_subsets(dataset, pipelines, indices, config, device)
        if (broken or failed) and dataset.on_broken == "error":  # also those that opened
            every_one = sorted((broken | failed).items())
            raise BrokenImages([error for _, error in every_one], len(dataset))
    notes = dataset.note.splitlines() + notes_on_cut(dataset, indices, config)
    notes += notes_on(getattr(dataset, "remarks", b""))  # a user's dataset may have none
    try:
        notes += classes_without_images(dataset, indices, config)
    except DataError as error:
        reasons = "".join(f"\n  {one}" for one in list(broken.values())[:MAX_FAULTS])
        raise DataError(f"{error}{reasons}") from None
    notes += conflicts(dataset.ids, dataset.labels, digests, indices)
    return Data(
        dataset=dataset,
        subsets=subsets,
        skipped=[(error.path, error.reason) for error in broken.values()],
        split=how_split(config) | manifest(indices, dataset.ids, digests),
        notes=notes,
    )


def read_subsets(
    dataset: Dataset,
    pipelines: Mapping[str, Pipeline],
    indices: Mapping[str, list[int]],
    config: Config,
    device: torch.device,
) -> tuple[dict[str, Subset], dict[int, BrokenImage]]:
    """Each split's images, decoded, and all broken ones by index. Raises ConfigError, DataError."""
    subsets: dict[str, Subset] = {}
    broken: dict[int, BrokenImage] = {}
    for name, chosen in indices.items():
        side = "train" if name == "train" else "eval"
        try:
            subsets[name], failed = read_subset(dataset, pipelines[side], chosen, config, device)
        except ValueError as error:
            if component_place(error) and not NUMBERED.search(str(error)):
                raise  # it is the dataset's, not a transform's
            check_fills(config, side, len(dataset.image(chosen[0])))  # in better words
            raise ConfigError([transform_fault(config, side, error)]) from None
        broken |= failed
    return subsets, broken


def how_split(config: Config) -> dict[str, Any]:
    """The settings of the split, as split.json holds them."""
    ratios, seed, pool = config.split.ratios, config.split.seed, config.split.pool
    how: dict[str, Any] = {"ratios": [float(ratio) for ratio in ratios]}
    if config.split.folds is not None:
        how = {"folds": config.split.folds, "fold": config.split.fold}
    return how | {"seed": seed, "pool": pool}


def load_subset(
    config: Config, split: Mapping[str, str], device: torch.device
) -> tuple[Dataset, Subset]:
    """The dataset, and one split of it as a run's split.json names it, with the eval transforms.

    split maps sample ids to digests. Raises DataError if images are absent or have changed.
    """
    dataset = open_dataset(config)
    index_of = {name: index for index, name in enumerate(dataset.ids)}
    absent = [name for name in split if name not in index_of]
    indices = [index_of[name] for name in split if name in index_of]
    digests: Sequence[str | BrokenImage] | None = dataset.digests(indices)
    if digests is None:
        digests = in_threads(lambda i: attempt(dataset.digest, i), indices, "reading images")
    found = dict(zip((dataset.ids[index] for index in indices), digests, strict=True))
    changed = [name for name, digest in found.items() if digest != split[name]]
    if absent or changed:
        faults = [f"{name} is absent" for name in absent]
        for name in changed:
            now = found[name]
            faults.append(
                f"{name}: {now.reason}" if isinstance(now, BrokenImage) else f"{name} has changed"
            )
        raise DataError(
            f"{config.dataset.name} no longer gives the images of this run: "
            f"{', '.join(faults[:5])}{f' and {len(faults) - 5} more' if len(faults) > 5 else ''}. "
            "Bring them back, or name their place: dataset.root=..."
        )
    pipeline = build_pipelines(config, num_classes=len(dataset.classes))["eval"]
    subset, failed = read_subset(dataset, pipeline, indices, config, device)
    if failed:
        raise BrokenImages(failed.values(), len(dataset))
    return dataset, subset


def open_dataset(config: Config) -> Dataset:
    """The config's dataset. Raises ConfigError for bad arguments, DataError if it has one class."""
    try:
        dataset: Dataset = build(DATASETS, "dataset", config.dataset)
    except DataError:
        raise
    except Exception as error:
        if isinstance(in_plain_words(error), OutOfMemory) or is_of_machinery(error):
            raise
        message = f"cannot be opened: {refusal_of(error)}"
        raise ConfigError([config.fault("dataset", message)]) from error
    if len(dataset.classes) < 2:
        raise DataError(
            f"{config.dataset.name} gives one class only, {dataset.classes[0]!r} "
            f"({len(dataset):,} images); expected at least two. Is dataset.root, or the column of "
            "the labels, the right one?"
        )
    return dataset


def transform_fault(config: Config, side: str, error: Exception) -> Fault:
    """A fault at the transform that refused an image; its number is in the pipeline's message."""
    found, listed = NUMBERED.search(str(error)), getattr(config.transforms, side)
    sizes = {i: c.arguments.get("size") for i, c in enumerate(listed) if c.name == "Resize"}
    sides = {i: size[0] if isinstance(size, list) else size for i, size in sizes.items()}
    one = [i for i, size in sizes.items() if isinstance(size, int) or len(size or ()) == 1]
    if "cannot form a batch" in str(error) and one:
        where, number = listed[int(found[1])].name if found else "the batch", sides[one[-1]]
        message = f"one number keeps the aspect ratio, so images of several sizes reach {where}"
        path = f"transforms.{side}.{one[-1]}.size"
        return config.fault(path, f"{message}; write size: [{number}, {number}]")
    path = f"transforms.{side}.{found[1]}" if found else f"transforms.{side}"
    return config.fault(path, with_cause(error))


class BrokenImages(DataError):
    """Every image that cannot be read, in one message."""

    def __init__(self, errors: Collection[BrokenImage], images: int) -> None:
        lines = "".join(f"\n  {error.path}: {error.reason}" for error in errors)
        super().__init__(
            f"{len(errors):,} of {images:,} images cannot be read:{lines}\n"
            "Mend or remove them, or leave them out with dataset.on_broken=skip."
        )


def cut(
    dataset: Dataset, usable: Sequence[int], digests: Sequence[str], config: Config
) -> dict[str, list[int]]:
    """The usable samples of train, val and test, by their index in the dataset.

    Raises ConfigError for two folds if test is to be one of them, DataError as ``split`` does.
    """
    how = config.split
    if how.folds == 2 and (how.pool or "test" not in dataset.parts):
        message = "2 leave nothing to train on beside val and test; expected at least 3"
        raise ConfigError([config.fault("split.folds", message)])
    columns: list[Any] = [dataset.labels, digests, dataset.parts]
    labels, contents, parts = ([column[index] for index in usable] for column in columns)
    folds = how.folds, how.fold or 0
    cut_usable = split_dataset(labels, contents, parts, how.ratios, how.seed, how.pool, *folds)
    return {name: [usable[row] for row in rows] for name, rows in cut_usable.items()}


def notes_on_cut(
    dataset: Dataset, splits: Mapping[str, Sequence[int]], config: Config
) -> list[str]:
    """A note on the parts that an official split lacks, and that were cut from train."""
    official = set(dataset.parts) - {None}
    if not official or config.split.pool or config.split.folds is not None:
        return []
    cut_off = [name for name in ("val", "test") if name not in official]
    texts = [f"{counted(len(splits[name]), 'image')} of train are {name}" for name in cut_off]
    parts = " and ".join(cut_off)
    return [f"the data has no {parts} of its own: {', '.join(texts)}"] if texts else []


def classes_without_images(
    dataset: Dataset, splits: Mapping[str, Sequence[int]], config: Config
) -> list[str]:
    """A note for each split without images of some classes; DataError if that is train.

    With folds a rare class may be held out whole; then only a class is an error that no fold can
    train: without any image, or with images in the official test set only.
    """
    has_folds = config.split.folds is not None
    keeps_test = "test" in dataset.parts and not config.split.pool
    notes, every = [], Counter(dataset.labels)
    counts = {split: Counter(dataset.labels[i] for i in rows) for split, rows in splits.items()}
    for split in counts:
        absent = [k for k in range(len(dataset.classes)) if not counts[split][k]]
        unused = [k for k in absent if not any(count[k] for count in counts.values())]
        hopeless = [k for k in absent if k in unused or (keeps_test and not counts["val"][k])]
        if split == "train" and hopeless and has_folds:
            absent = hopeless  # the others are trained on in another fold
        told = []
        for label in absent:
            has = [f"{n:,} in {other}" for other, count in counts.items() if (n := count[label])]
            unread = every[label] - sum(count[label] for count in counts.values())
            has += [f"{unread:,} that cannot be read"] if unread else []
            told.append(f"'{dataset.classes[label]}' ({', '.join(has) or 'no image at all'})")
        if not told:
            continue
        more = f" and {len(told) - 5:,} more" if len(told) > 5 else ""
        text = f"{split} has no image of {len(told):,} of {len(dataset.classes):,} classes: "
        notes.append(text + ", ".join(told[:5]) + more)
        if split == "train" and (hopeless or not has_folds):
            anew = "" if unused else ", or cut all images anew with split.pool=true"
            raise DataError(
                f"{notes[-1]}. Nothing can be learned of a class without training images: add "
                f"images or remove the class{anew}."
            )
    return notes


def build_pipelines(config: Config, num_classes: int) -> dict[str, Pipeline]:
    """The train and the eval pipeline."""
    pipelines = {}
    for side, listed in (("train", config.transforms.train), ("eval", config.transforms.eval)):
        built = [
            build(TRANSFORMS, f"transforms.{side}.{i}", component, num_classes=num_classes)
            for i, component in enumerate(listed)
        ]
        try:
            pipelines[side] = Pipeline(built, config.seed)
        except ValueError as error:
            raise ConfigError([transform_fault(config, side, error)]) from None
    return pipelines


def train_loader(
    config: Config, subset: Subset, device: torch.device, channels_last: bool = False
) -> Loader:
    """The shuffled batches of the training split."""
    settings = config.loader
    order = Order(config.seed, settings.sampling, settings.drop_last)
    delivery = Delivery(choose_workers(config, subset), device, channels_last)
    return Loader(subset, settings.batch_size, order, delivery, Shares(rank(), world_size()))


def eval_loader(
    config: Config, subset: Subset, device: torch.device, channels_last: bool = False
) -> Loader:
    """The batches of a split in its own order."""
    images, _ = subset.sample(torch.arange(1))
    # Small images want large batches; at 224 x 224 a batch of 256 would fill a laptop's memory.
    fitting = 256 if images.numel() <= 3 * 64 * 64 else config.loader.batch_size
    batch_size = config.loader.eval_batch_size or max(fitting, config.loader.batch_size)
    even = config.train.parallel == "fsdp"  # all ranks do each forward pass together
    delivery = Delivery(choose_workers(config, subset), device, channels_last)
    return Loader(subset, batch_size, Order(), delivery, Shares(rank(), world_size(), even))


def choose_workers(config: Config, subset: Subset) -> int:
    """The number of worker processes; auto: 0 if reading a batch is no slower than sending it."""
    if subset.cache not in ("ram", "off"):
        return 0  # other processes cannot share a device's memory
    if config.loader.workers != "auto":
        return config.loader.workers
    rows = torch.arange(min(config.loader.batch_size, len(subset)))
    subset.read(rows, 0)  # the first read also warms up
    started = time.process_time()  # not the clock: other processes may be busy
    subset.read(rows, 0)
    # 0.02 s stand for sending a batch to this process.
    return 0 if time.process_time() - started < 0.02 else min(cores(), 8)


def cores() -> int:
    """The processor cores for this rank: those of the machine, shared among its ranks."""
    return max((os.cpu_count() or 1) // local_world_size(), 1)


def check_fills(config: Config, side: str, channels: int) -> None:
    """Raise ConfigError for a ``fill`` or ``value`` that is no number a channel, nor one for all.

    Some random transforms would fail only when they first use it.
    """
    faults = []
    for kind, path, component in components(config):
        if kind == "transform" and path.startswith(f"transforms.{side}."):
            for name in ("fill", "value"):
                given = component.arguments.get(name)
                if isinstance(given, list) and len(given) not in (1, channels):
                    message = f"has {len(given)} numbers, and the images {channels} channels"
                    faults.append(config.fault(f"{path}.{name}", f"{message}; give one for all"))
            if component.name == "Grayscale":
                channels = component.arguments.get("num_output_channels", 1)
    if faults:
        raise ConfigError(faults)


def check_shape(config: Config, subset: Subset, side: str) -> tuple[int, int, int]:
    """The (C, H, W) of the model's input, found with a split's smallest and largest images.

    Raises ConfigError, at the transform, if they cannot form a batch, and BrokenImage.
    """
    try:
        images, _ = subset.sample(subset.extremes)
        subset.try_choices(subset.extremes)
    except BrokenImage:
        raise
    except (DataError, ComponentError) as error:
        raise ConfigError([transform_fault(config, side, error)]) from None
    if images.ndim > 5:
        message = "FiveCrop and TenCrop can stand once in a list"
        raise ConfigError([config.fault(f"transforms.{side}", message)])
    channels, height, width = images.shape[-3:]
    return channels, height, width
