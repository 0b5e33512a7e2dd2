"""Opens labelled images that are no part of a run, and matches their classes to the run's."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets import DATASETS, DataError, Dataset, has_several_labels
from datasets.files import ImageFiles
from datasets.shards import INDEX
from datasets.split import is_digest
from datasets.words import agreeing, counted
from models.weights import rows_by_name
from trainer.build.trained import TrainedModel, fitted
from trainer.build.trial import check_components
from trainer.components.decisions import number_of_each
from trainer.config import Config, load_config
from trainer.config.document import flow
from trainer.config.signatures import parameters_of, resolve
from trainer.input.cut import open_dataset
from trainer.process.errors import ConfigError, UsageError
from trainer.process.words import listed, nearest, shortened

BY_SUFFIX = {".csv": "CSVImages", ".tsv": "CSVImages", ".npz": "Arrays", ".parquet": "Parquet"}
# Arguments of the run's own dataset that say where its images lie, not how they are read.
OF_ITS_PLACE = {"root", "csv", "labels", "part_column", "on_broken", "layout", "strip"}
OF_THE_IMAGES = ("channels", "bits", "decode")
NAMED = 20  # classes that a message names; of images it names IMAGES_NAMED
IMAGES_NAMED = 5


class OwnFiles(ImageFiles):
    """Image files that are read as a run reads its own: with the same channels."""

    def __init__(self, files: ImageFiles, channels: int) -> None:
        vars(self).update(vars(files))
        self.channels = channels

    def decode(self, index: int, content: bytes, at_least: int = 0) -> Tensor:
        """The image, (channels, H, W). Raises BrokenImage, also if it has other channels."""
        image = super().decode(index, content, at_least)
        return fitted(image, self.form, self.channels, str(self.root / self.ids[index]))

    @property
    def recipe(self) -> str:
        """All that decides the pixels of a content."""
        return f"{super().recipe}, as {self.channels} channels"


@dataclass(frozen=True)
class Matched:
    """The classes of a place: the number of the run's class for each; the images of the others.

    lacking: classes of the run that the place does not have.
    """

    numbers: dict[str, int]
    unknown: dict[str, int]
    lacking: list[str]


def open_place(run: Path, place: Path, overrides: Sequence[str]) -> tuple[Config, Dataset]:
    """The run's configuration with the place's images as its dataset, and that dataset.

    place: a folder of class folders, a table, an .npz or a Parquet file. overrides may set
    arguments of its dataset. Raises UsageError for any other file, DataError as the dataset does.
    """
    own, name = load_config(run / "config.yaml").dataset, kind_of(place, overrides)
    known = parameters_of(resolve(DATASETS, name)) if name in DATASETS else {}
    is_same = name == own.name
    taken = {key: own.arguments.get(key) for key in OF_THE_IMAGES if key in own.arguments}
    taken = {k: v for k, v in own.arguments.items() if k not in OF_ITS_PLACE} if is_same else taken
    key = "csv" if name == "CSVImages" else "root"
    if other := [word for word in overrides if word.startswith(f"dataset.{key}=")]:
        raise UsageError(
            f"{other[0]}: the images are those of {place}; name their place after RUN."
        )
    where = {key: str(place)}
    skips = {"on_broken": "skip"} if "on_broken" in known else {}
    taken = {key: value for key, value in taken.items() if key in known}
    dataset = flow({"name": name, **taken, **skips, **where})
    config = load_config(run / "config.yaml", [f"dataset={dataset}", *overrides])
    if faults := check_components(config, ranges=False):
        raise ConfigError(faults)
    config = config.model_copy(update={"split": config.split.model_copy(update={"by": "content"})})
    return config, open_dataset(config, least_classes=1)


def kind_of(place: Path, overrides: Sequence[str]) -> str:
    """The name of the dataset that reads a place."""
    for word in overrides:
        if word.startswith("dataset.name="):
            return word.partition("=")[2]
    if place.is_dir():
        return "Shards" if (place / INDEX).is_file() else "ImageFolder"
    if not place.exists():
        raise UsageError(f"{place} does not exist; expected a folder or a table of new images.")
    if place.suffix.lower() not in BY_SUFFIX:
        wanted = listed(BY_SUFFIX, "or")
        raise UsageError(f"{place}: expected a folder with class folders, or a file of {wanted}.")
    return BY_SUFFIX[place.suffix.lower()]


def match(own: Sequence[str], dataset: Dataset, renames: Mapping[str, str]) -> Matched:
    """Find each class of a place among the run's ``own`` by its name, as ``model.weights`` does.

    renames: names of the place -> those of the run. Raises UsageError for one that is not there,
    DataError if no class is found.
    """
    found = dataset.classes
    for old, new in renames.items():
        if old not in found:
            raise UsageError(f"--rename {old}={new}: {old!r} is no class there: {_few(found)}.")
        if not rows_by_name(own, [new]):
            raise UsageError(f"--rename {old}={new}: {new!r} is no class of the run: {_few(own)}.")
    renamed = {name: renames.get(name, name) for name in found}
    numbers = rows_by_name(own, list(dict.fromkeys(renamed.values())))
    matched = {name: numbers[new] for name, new in renamed.items() if new in numbers}
    counts = zip(found, number_of_each(torch.tensor(dataset.labels), len(found)), strict=True)
    unknown = {name: count for name, count in counts if name not in matched}
    if not matched:
        raise DataError(
            f"none of the classes there is one of the run's.\n  there: {_few(found)}\n"
            f"  the run's: {_few(own)}\nRename them, or type --rename OLD=NEW for each."
        )
    reached = {*matched.values()}
    return Matched(matched, unknown, [name for k, name in enumerate(own) if k not in reached])


def _few(names: Iterable[str]) -> str:
    first = [repr(name) for name in names]
    more = len(first) - NAMED
    return listed(first[:NAMED] + [f"{more:,} more"] * (more > 0))


def labels_in(trained: TrainedModel, dataset: Dataset, matched: Matched) -> Tensor:
    """The label of each image by the run's classes: (N,), -1 if unknown; or (N, K) of several.

    Raises DataError if only one of both has several labels.
    """
    several = has_several_labels(dataset.labels)
    if several != (trained.thresholds is not None):
        theirs, its = ("several labels", "one class")[:: 1 if several else -1]
        how = "" if several else ": expected a table with label columns or a separator"
        raise DataError(f"an image there has {theirs}, and one of the run has {its}{how}.")
    numbers = [matched.numbers.get(name, -1) for name in dataset.classes]
    if not several:
        return torch.tensor(numbers)[torch.tensor(dataset.labels)]
    given = torch.tensor(dataset.labels)
    labels = torch.zeros(len(given), len(trained.classes))
    for column, number in enumerate(numbers):
        if number >= 0:
            labels[:, number] = labels[:, number].maximum(given[:, column])
    return labels


def notes_on_classes(own: Sequence[str], dataset: Dataset, matched: Matched) -> list[str]:
    """A line for each unknown class, with its images, and one for classes without images."""
    several, notes = has_several_labels(dataset.labels), []
    for name, number in [*matched.unknown.items()][:NAMED]:
        images = counted(number, "image")
        left = f"is not judged ({images})" if several else f"{images} in no metric"
        near = nearest(name, own)
        hint = f"; did you mean {near!r}? type --rename {shlex.quote(f'{name}={near}')}"
        notes.append(f"{name!r} is no class of the run: {left}{hint * bool(near)}")
    if others := [*matched.unknown.values()][NAMED:]:
        told = f"{counted(sum(others), 'label' if several else 'image')}"
        notes.append(f"and {len(others):,} more classes that are none of the run's: {told}")
    if parts := Counter(part for part in dataset.parts if part):
        told = listed(f"{part} {count:,}" for part, count in parts.items())
        notes.append(f"its own parts ({told}) are taken as one")
    if matched.lacking:
        typed = "; --rename OLD=NEW takes a class there as one of the run's" * bool(matched.unknown)
        notes.append(f"no image of the run's {_few(matched.lacking)}{typed}")
    return notes


def notes_on_copies(
    names: Sequence[str], digests: Sequence[str], labels: Tensor, split: Mapping[str, Any]
) -> list[str]:
    """What is no new image: copies of the run's training images, and of each other.

    names, digests, labels: of each image; a digest is as split.json has it.
    """
    notes = []
    used = {name: {*split[name].values()} for name in ("train", "val")}
    if not all(map(is_digest, used["train"])):
        notes.append("the run was split by name: whether it trained on these images is not known")
    effects = {"train": "it was trained on them, and the numbers flatter it",
               "val": "they chose its best epoch"}  # fmt: skip
    for part, effect in effects.items():
        same = [name for name, known in zip(names, digests, strict=True) if known in used[part]]
        if same:
            are = agreeing(len(same), "are")
            told = f"{len(same):,} of {len(names):,} images {are} of the run's {part} part"
            notes.append(f"{told} (equal content): {effect}; {_first(same)}")
    rows: dict[str, list[int]] = {}
    for row, known in enumerate(digests):
        rows.setdefault(known, []).append(row)
    groups = [some for some in rows.values() if len(some) > 1]
    if groups:
        differing = sum(any((labels[row] != labels[some[0]]).any() for row in some)
                        for some in groups)  # fmt: skip
        extra = sum(map(len, groups)) - len(groups)
        told = f"{counted(extra, 'image')} repeat{'s' * (extra == 1)} the content of another"
        told += f", {differing:,} of {len(groups):,} groups with another class" * (differing > 0)
        notes.append(f"{told}; {_first([names[some[1]] for some in groups])}")
    return notes


def _first(names: Sequence[str]) -> str:
    """ "first a, b and 3 more"."""
    more = len(names) - IMAGES_NAMED
    shown = [shortened(name, 160) for name in names[:IMAGES_NAMED]]
    return f"first {listed(shown + [f'{more:,} more'] * (more > 0))}"


def notes_on_broken(broken: Collection[tuple[str, str]]) -> list[str]:
    """A line with the images that cannot be read."""
    if not broken:
        return []
    told = _first([f"{name} ({shortened(reason)})" for name, reason in broken])
    return [f"{counted(len(broken), 'image')} cannot be read, in no metric; {told}"]


def pixel_digests(dataset: Dataset, rows: Sequence[int]) -> list[str]:
    """The SHA-256 of each image's pixels, which a dataset in memory has as its digest."""
    images = (dataset.image(row).contiguous() for row in rows)
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
