"""From the configuration to train, val and test: decoded once, ready to be batched."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from datasets import (
    BrokenImage,
    DataError,
    Dataset,
    has_several_labels,
)
from datasets.bands import form_in, notes_on_bits, notes_on_pictures
from datasets.images import notes_on
from datasets.split import conflicts, is_digest, manifest
from datasets.unknown import unknown_images
from datasets.words import counted
from trainer.config import Config
from trainer.config.config import components
from trainer.config.construct import build
from trainer.input.cut import (
    BrokenImages,
    classes_without_images,
    find_groups,
    fix,
    fix_again,
    how_split,
    names_for_groups,
    notes_on_cut,
    notes_on_groups,
    open_dataset,
    open_fixes,
    read_unknown,
    split_and_prepare,
)
from trainer.input.reading import ImageRefused
from trainer.input.source import Source
from trainer.input.subset import Subset, at_least_of
from trainer.process.errors import (
    MAX_FAULTS,
    ComponentError,
    ConfigError,
    Fault,
    component_place,
    with_cause,
)
from trainer.process.start import give_back_freed_memory
from transforms import TRANSFORMS
from transforms.pipeline import Pipeline

OF_COLOURS = {"ColorJitter", "Grayscale", "RandomGrayscale", "RandAugment", "AutoAugment"}
OF_COLOURS |= {"TrivialAugmentWide"}
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
    def left_out(self) -> list[tuple[str, str]]:
        """``skipped``, and the images that training has met and could not read."""
        met = self.subsets["train"].met
        return [*self.skipped, *({} if met is None else met.found).items()]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label k is ``classes[k]``."""
        return self.dataset.classes

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels."""
        return has_several_labels(self.dataset.labels)

    @cached_property
    def image_channels(self) -> int:
        """Channels of the images before any transform."""
        train, images = self.subsets["train"], self.dataset.images
        if images is not None:
            return images.shape[1]
        for index in train.indices.tolist():
            with suppress(BrokenImage):  # split by name, train may have some
                return len(self.dataset.image(index))
        raise DataError("no image of train can be read")

    @cached_property
    def split_digest(self) -> str:
        """The ``digest_of_split`` of this split."""
        return digest_of_split(self.split)


def digest_of_split(split: dict[str, Any]) -> str:
    """SHA-256 of a split: equal for the same samples in the same order in train, val and test."""
    digest = hashlib.sha256()
    for name, value in split.items():
        lines = map(" ".join, value.items()) if isinstance(value, dict) else iter([f"{value}"])
        text = f"{name}\n{next(lines, '')}"
        while text:  # in pieces, for the whole text takes as much memory as the ids
            digest.update(text.encode(errors="surrogateescape"))
            text = "".join(f"\n{line}" for line in islice(lines, 4096))
        digest.update(b"\n")
    return digest.hexdigest()


def load_data(config: Config, device: torch.device) -> Data:
    """Open the dataset, split it, and run the once-per-sample stage of each split's pipeline.

    Files that the store does not know yet are read. Raises DataError for data that cannot be used;
    it names all broken files.
    """
    dataset = open_dataset(config)
    fixes = open_fixes(config, dataset)
    pipelines = build_pipelines(config, num_classes=len(dataset.classes))
    names_of_groups = names_for_groups(config, dataset)
    source = Source(dataset, pipelines, config, device)
    give_back_freed_memory()  # of a large folder it would be some 200 bytes a file
    with transforms_named(config):
        if not source.is_by_name:
            read_unknown(source, names_of_groups)
        keys = source.split_keys()
        fixed = fix(source, fixes, keys)
        groups = find_groups(source, keys, names_of_groups)
        indices = split_and_prepare(source, keys, groups)
        subsets = {name: source.subset(name, rows) for name, rows in indices.items()}
    for found in source.channels.values():
        check_channels(found)
    notes = dataset.note.splitlines() + fixed + notes_on_cut(dataset, indices, config)
    notes += notes_on_groups(dataset, groups, indices, config)
    notes += source.notes + notes_on_decoding(dataset, pipelines)
    remarks = getattr(dataset, "remarks", b"")  # a user's dataset may have none
    notes += notes_on(remarks) + notes_on_bits(remarks)
    notes += notes_on_pictures(
        form_in(config.dataset.arguments), set().union(*source.channels.values())
    )
    left_out = [error for _, error in sorted(source.broken.items())]
    try:
        notes += classes_without_images(dataset, indices, config)
    except DataError as error:
        reasons = "".join(f"\n  {one}" for one in left_out[:MAX_FAULTS])
        raise DataError(f"{error}{reasons}") from None
    names = source.identities() if source.is_by_name else keys
    if root := config.dataset.trainer_arguments.get("unknown"):
        digests = None if source.is_by_name else dict(zip(names, dataset.ids, strict=True))
        notes += unknown_images(root, form_in(config.dataset.arguments).suffixes, digests)[1]
    if not source.is_by_name:
        notes += conflicts(dataset.ids, dataset.labels, names, indices)
    data = Data(
        dataset=dataset,
        subsets=subsets,
        skipped=[(error.path, error.reason) for error in left_out],
        split=how_split(config, source.is_by_name, fixes) | manifest(indices, dataset.ids, names),
        notes=notes,
    )
    give_back_freed_memory()
    return data


def notes_on_decoding(dataset: Dataset, pipelines: Mapping[str, Pipeline]) -> list[str]:
    """A line for each pipeline on what ``decode: fast`` does for it."""
    if getattr(dataset, "decoding", "exact") != "fast":
        return []
    notes = []
    for side, pipeline in pipelines.items():
        if needed := at_least_of(dataset, pipeline):
            what = (
                f"decoded smaller if {needed} pixels of the shorter side stay; their pixels differ"
            )
        else:
            what = "decoded whole, because a transform counts in pixels before one sets the size"
        notes.append(f"dataset.decode=fast: JPEGs for transforms.{side} are {what}")
    return notes


def check_channels(found: Mapping[int, tuple[int, str]]) -> None:
    """Raise DataError if images have different numbers of channels.

    ``found``: of each number, how many images have it, and the first of them.
    """
    if len(found) < 2:
        return
    told = (
        f"{counted(channels, 'channel')}: {counted(number, 'image')}, first {name}"
        for channels, (number, name) in sorted(found.items())
    )
    raise DataError(
        f"images have different numbers of channels, and a model takes one ({'; '.join(told)}). "
        "Leave some out, or make each RGB: dataset.channels=rgb."
    )


@contextmanager
def transforms_named(config: Config) -> Iterator[None]:
    """Context manager: a fixed transform that refuses an image becomes a fault at its place."""
    try:
        yield
    except ImageRefused as refused:
        error = refused.__cause__
        assert isinstance(error, ValueError)
        if component_place(error) and not NUMBERED.search(str(error)):
            raise error from None
        side = "eval" if refused.number else "train"
        check_fills(config, side, refused.channels)  # in better words
        raise ConfigError([transform_fault(config, side, error)]) from None


def load_subset(
    config: Config,
    split: Mapping[str, str],
    device: torch.device,
    saved: Mapping[str, Any] | None = None,
) -> tuple[Dataset, Subset]:
    """The dataset, and one split of it as a run's split.json names it, with the eval transforms.

    saved: all of split.json, where labels matter: then ``dataset.fixes`` corrects them. split maps
    sample ids to what ``Source.identities`` gave, by content or by name: ``auto`` may choose
    otherwise for data that has grown. Raises DataError if images are absent or have changed.
    """
    by = "content" if all(map(is_digest, split.values())) else "name"
    config = config.model_copy(update={"split": config.split.model_copy(update={"by": by})})
    dataset = open_dataset(config)
    if saved is not None:
        fix_again(config, dataset, saved)
    index_of = {name: index for index, name in enumerate(dataset.ids)}
    absent = [name for name in split if name not in index_of]
    indices = [index_of[name] for name in split if name in index_of]
    pipelines = build_pipelines(config, num_classes=len(dataset.classes))
    source = Source(dataset, pipelines, config, device)
    with transforms_named(config):
        source.prepare("test", indices)
    names = source.identities()
    changed = [index for index in indices if names[index] != split[dataset.ids[index]]]
    if absent or changed:
        faults = [f"{name} is absent" for name in absent]
        for index in changed:
            error = source.broken.get(index)
            name = dataset.ids[index]
            faults.append(f"{name}: {error.reason}" if error else f"{name} has changed")
        raise DataError(
            f"{config.dataset.name} no longer gives the images of this run: "
            f"{', '.join(faults[:5])}{f' and {len(faults) - 5} more' if len(faults) > 5 else ''}. "
            "Bring them back, or name their place: dataset.root=..."
        )
    if source.broken:
        raise BrokenImages(source.broken.values(), len(dataset))
    with transforms_named(config):
        return dataset, source.subset("test", indices)


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


def build_pipelines(config: Config, num_classes: int) -> dict[str, Pipeline]:
    """The train and the eval pipeline."""
    pipelines, sizes = {}, {"train": config.train.sizes_by_epoch, "eval": {}}
    for side, listed in (("train", config.transforms.train), ("eval", config.transforms.eval)):
        built = [
            build(TRANSFORMS, f"transforms.{side}.{i}", component, num_classes=num_classes)
            for i, component in enumerate(listed)
        ]
        try:
            pipelines[side] = Pipeline(built, config.seed, sizes[side])
        except ValueError as error:
            raise ConfigError([transform_fault(config, side, error)]) from None
    return pipelines


def check_fills(config: Config, side: str, channels: int) -> None:
    """Raise ConfigError for a ``fill`` or ``value`` that is no number a channel, nor one for all.

    Also for a transform of colours, of images that are neither grey nor RGB. Some random transforms
    would fail only when they first use it.
    """
    faults = []
    for kind, path, component in components(config):
        if kind == "transform" and path.startswith(f"transforms.{side}."):
            for name in ("fill", "value"):
                given = component.arguments.get(name)
                if isinstance(given, list) and len(given) not in (1, channels):
                    message = f"has {len(given)} numbers, and the images {channels} channels"
                    faults.append(config.fault(f"{path}.{name}", f"{message}; give one for all"))
            if component.name in OF_COLOURS and channels not in (1, 3):
                message = f"is for grey and RGB, and the images have {channels} channels"
                faults.append(config.fault(path, f"{component.name} {message}; remove it"))
            if component.name == "Grayscale":
                channels = component.arguments.get("num_output_channels", 1)
    if faults:
        raise ConfigError(faults)


def check_shape(config: Config, subset: Subset, side: str) -> tuple[int, int, int]:
    """The (C, H, W) of the transforms' results, found with a split's smallest and largest images.

    Raises ConfigError, at the transform, if they cannot form a batch, and BrokenImage.
    """
    try:
        images, _ = subset.at(None).sample(subset.extremes)
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
