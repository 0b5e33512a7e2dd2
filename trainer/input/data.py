"""From the configuration to train, val and test: decoded once, ready to be batched."""

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from datasets import (
    DATASETS,
    BrokenImage,
    DataError,
    Dataset,
    Labels,
    duplicates,
    has_several_labels,
)
from datasets.bands import form_in, notes_on_bits, notes_on_pictures
from datasets.fixes import Fixes
from datasets.grouping import (
    Groups,
    group_names,
    groups_by_name,
    groups_of_similar,
    in_words,
    key_by_name,
)
from datasets.images import notes_on
from datasets.split import PARTS, conflicts, expected_part, manifest, shares_of_parts
from datasets.split import split as split_dataset
from datasets.words import counted
from trainer.config import Config
from trainer.config.config import components
from trainer.config.construct import build
from trainer.config.rules import several_labels_findings
from trainer.config.signatures import resolve
from trainer.distributed.processes import rank, world_size
from trainer.distributed.shares import Shares
from trainer.input.loader import LABEL, Delivery, Loader, Order
from trainer.input.reading import ImageRefused
from trainer.input.source import Source
from trainer.input.store import recipe_of
from trainer.input.subset import Subset, at_least_of
from trainer.input.worker import packed
from trainer.process.console import bar
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
from trainer.process.start import give_back_freed_memory
from transforms import TRANSFORMS
from transforms.pipeline import Pipeline

# What worker processes cost, in seconds of processor time.
TO_START = 1.0  # in all, with what is copied on write afterwards
TO_WAKE = 0.0004  # a batch, in both processes, beside the copy to shared memory
WORTH = 4  # how many times as long reading must take as sending
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


def open_fixes(config: Config, dataset: Dataset) -> Fixes | None:
    """The file of ``dataset.fixes``, checked; None without one. Raises DataError."""
    file = config.dataset.trainer_arguments.get("fixes")
    return None if file is None else Fixes(file, dataset)


def fix(source: Source, fixes: Fixes | None, digests: Sequence[str]) -> list[str]:
    """Correct the labels of the dataset, and leave out what ``fixes`` say; a note on it."""
    if fixes is None:
        return []
    source.left_out, note = fixes.apply(source.dataset, enumerate(digests))
    return [note]


def fix_again(config: Config, dataset: Dataset, saved: Mapping[str, Any]) -> None:
    """Correct the labels as a run did, whose split.json is ``saved``.

    Raises DataError if the fixes are not those of the run.
    """
    fixes = open_fixes(config, dataset)
    if (None if fixes is None else fixes.digest) != saved.get("fixes"):
        file = "there is none" if fixes is None else f"{fixes.path} is another, or has changed"
        raise DataError(
            f"dataset.fixes: {file}; that of the run has the SHA-256 {saved.get('fixes')}. Bring "
            "it back, or name its place: dataset.fixes=..."
        )
    if fixes is not None:
        digest_of = {name: known for part in PARTS for name, known in saved[part].items()}
        fixes.apply(dataset, ((i, digest_of.get(name, "")) for i, name in enumerate(dataset.ids)))


def names_for_groups(config: Config, dataset: Dataset) -> list[str] | None:
    """The name of each sample's group, "" for none; None if names make no groups.

    Raises ConfigError for a pattern that takes too long and for a dataset without columns,
    DataError for a column that is not there.
    """
    how = config.split.group
    if not isinstance(how, dict):
        return None
    ((kind, value),) = how.items()
    if kind == "column" and not hasattr(dataset, "column"):
        have = [name for name in DATASETS if hasattr(resolve(DATASETS, name), "column")]
        others = f"; these datasets have: {', '.join(have)}" if have else ""
        message = f"{config.dataset.name} has no table with columns{others}"
        raise ConfigError([config.fault("split.group.column", message)])
    try:
        return group_names(kind, value, dataset)
    except ValueError as error:
        raise ConfigError([config.fault(f"split.group.{kind}", str(error))]) from None


def find_groups(
    source: Source, digests: Sequence[str], names: Sequence[str] | None
) -> Groups | None:
    """The groups that ``split.group`` asks for; ``digests``: "" for images that cannot be read."""
    how, dataset = source.config.split.group, source.dataset
    if names is not None:
        return groups_by_name(in_words(how), names, digests)
    if how is None:
        return None

    def search() -> list[tuple[str, str]]:
        return duplicates.similar_contents(dataset, digests, bar)

    made_by = recipe_of(dataset, (), 0)
    if made_by is None and dataset.images is None:
        pairs = search()
    else:
        contents = "".join(sorted(set(digests)))
        code = Path(duplicates.__file__).read_bytes()
        known = [hashlib.sha256(what).hexdigest() for what in (contents.encode(), code)]
        pairs = source.remembered({"similar": known, "made by": made_by}, search)
    return groups_of_similar(dataset.ids, digests, pairs)


def notes_on_groups(
    dataset: Dataset, groups: Groups | None, splits: Mapping[str, Sequence[int]], config: Config
) -> list[str]:
    """A note on the groups that ``split.group`` has found."""
    if groups is None:
        return []
    how = config.split
    wanted = shares_of_parts(dataset.parts, how.ratios, how.pool, how.folds, how.fold or 0)
    return groups.note(splits, wanted).splitlines()


def read_unknown(source: Source, names: Sequence[str] | None = None) -> None:
    """Read the files whose content is not known, each once. ``names``: those of groups.

    Each is prepared for the split that its hash alone gives it. Few get another one afterwards.
    """
    dataset, how = source.dataset, source.config.split
    parts, folds = dataset.parts, (how.folds, how.fold or 0)
    expected = expected_part(parts, how.ratios, how.seed, how.pool, *folds)
    numbers = {split: source.number(split) for split in PARTS}
    some = range(0, len(parts), 1 + len(parts) // 1000)
    found = [expected(hashlib.sha256(str(i).encode()).hexdigest(), parts[i]) for i in some]
    counts = [0] * len(source.sides)
    for split, count in Counter(found).items():
        counts[numbers[split]] += len(parts) * count // len(some)

    def pick(index: int, digest: str) -> int:
        key = digest if names is None else key_by_name(names[index], digest)
        return numbers[expected(key, parts[index])]

    source.read_unknown(pick, counts)


def split_and_prepare(
    source: Source, keys: Sequence[str], groups: Groups | None = None
) -> dict[str, list[int]]:
    """The samples of each split, which ``keys`` decide; all that can be read are prepared.

    Raises BrokenImages, and DataError as ``cut`` does.
    """
    dataset, config = source.dataset, source.config
    removed = set[int]()
    while True:
        # Of a split by name, others take the places of those in train, as if they were met later.
        unusable = (removed if source.is_by_name else source.broken.keys()) | source.left_out
        usable: Sequence[int] = range(len(dataset))
        if unusable:
            usable = [index for index in usable if index not in unusable]
        try:
            indices = cut(dataset, usable, keys, config, groups)
        except DataError:
            if source.broken and dataset.on_broken == "error":
                raise BrokenImages(source.broken.values(), len(dataset)) from None
            raise
        source.decide(indices)
        for split, rows in indices.items():
            source.prepare(split, rows)
        if source.broken and dataset.on_broken == "error":
            every_one = [error for _, error in sorted(source.broken.items())]
            raise BrokenImages(every_one, len(dataset))
        without = ("train",) if source.is_by_name else ()
        checked = (rows for split, rows in indices.items() if split not in without)
        new = source.broken.keys() & set(chain.from_iterable(checked))
        removed |= new
        if not new:
            return indices


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


def how_split(config: Config, by_name: bool = False, fixes: Fixes | None = None) -> dict[str, Any]:
    """The settings of the split, as split.json holds them."""
    ratios, seed, pool = config.split.ratios, config.split.seed, config.split.pool
    how: dict[str, Any] = {"ratios": [float(ratio) for ratio in ratios]}
    if config.split.folds is not None:
        how = {"folds": config.split.folds, "fold": config.split.fold}
    how |= {"seed": seed, "pool": pool} | ({"by": "name"} if by_name else {})
    how |= {"group": grouped} if (grouped := in_words(config.split.group)) else {}
    return how | ({} if fixes is None else {"fixes": fixes.digest})


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
    by = "name" if any(known.endswith(" bytes") for known in split.values()) else "content"
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
    if has_several_labels(dataset.labels):
        found = several_labels_findings(config.model_dump(mode="json"))
        if faults := [config.fault(".".join(map(str, f.place)), f.message) for f in found]:
            raise ConfigError(faults)
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
    dataset: Dataset,
    usable: Sequence[int],
    digests: Sequence[str],
    config: Config,
    groups: Groups | None = None,
) -> dict[str, list[int]]:
    """The usable samples of train, val and test, by their index in the dataset.

    Raises ConfigError for two folds if test is to be one of them, DataError as ``split`` does and
    for a group in several official parts.
    """
    how = config.split
    if how.folds == 2 and (how.pool or "test" not in dataset.parts):
        message = "2 leave nothing to train on beside val and test; expected at least 3"
        raise ConfigError([config.fault("split.folds", message)])
    columns: list[Any] = [dataset.labels, digests, dataset.parts]
    columns += [] if groups is None else [groups.keys]
    if some := len(usable) < len(dataset):
        columns = [[column[index] for index in usable] for column in columns]
    labels, contents, parts, *keys = columns
    settings = how.ratios, how.seed, how.pool, how.folds, how.fold or 0
    if groups is not None:
        is_cut = shares_of_parts(parts, how.ratios, how.pool, how.folds, how.fold or 0)
        groups.refuse_divided(usable, dataset.parts, {*PARTS} - is_cut.keys())
    found = split_dataset(labels, contents, parts, *settings, *keys)
    return {name: [usable[row] for row in rows] for name, rows in found.items()} if some else found


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
    notes, every = [], count_classes(dataset.labels, range(len(dataset)))
    counts = {split: count_classes(dataset.labels, rows) for split, rows in splits.items()}
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
            fixed = " or that fixes leave out" * ("fixes" in config.dataset.trainer_arguments)
            has += [f"{unread:,} that cannot be read{fixed}"] if unread else []
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


def count_classes(labels: Labels, rows: Iterable[int]) -> Counter[int]:
    """The number of the samples ``rows`` of each class; with each label, if several."""
    count: Counter[Any] = Counter(labels[row] for row in rows)
    if not has_several_labels(labels):
        return count
    every: Counter[int] = Counter()
    for shares, number in count.items():
        every.update({k: number for k, share in enumerate(shares) if share > 0.5})
    return every


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
    """The number of worker processes; auto: 0 where they would save little or nothing."""
    if subset.cache not in ("ram", "store", "off"):
        return 0  # other processes cannot share a device's memory
    if config.loader.workers != "auto":
        return config.loader.workers
    rows = torch.arange(min(config.loader.batch_size, len(subset)))
    reading = cpu_seconds(lambda: subset.read(rows, 0))
    in_all = reading / len(rows) * len(subset) * config.train.epochs
    if cores() == 1 or in_all < TO_START:
        return 0
    batch = subset.read(rows, 0)
    piece = torch.empty(sum(image.nbytes + LABEL for image in batch[0]), dtype=torch.uint8)
    sending = cpu_seconds(lambda: packed(batch, piece)) + TO_WAKE
    return min(cores(), 8) if reading > WORTH * sending else 0


def cpu_seconds(work: Callable[[], Any]) -> float:
    """The processor time of ``work``, the second time, whatever other processes do."""
    work()  # warms up
    began = time.process_time()
    work()
    return time.process_time() - began


def cores() -> int:
    """The processor cores for this rank: those of the machine, shared among its ranks."""
    return max((os.cpu_count() or 1) // local_world_size(), 1)


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
