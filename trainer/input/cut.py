"""Which image is in which split, and with which label: dataset, fixes, groups, the cut."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from datasets import (
    DATASETS,
    BrokenImage,
    DataError,
    Dataset,
    Labels,
    duplicates,
    has_several_labels,
)
from datasets.fixes import Fixes
from datasets.grouping import (
    Groups,
    group_names,
    groups_by_name,
    groups_of_similar,
    in_words,
    key_by_name,
)
from datasets.split import PARTS, expected_part, shares_of_parts
from datasets.split import split as split_dataset
from datasets.words import counted
from trainer.config import Config
from trainer.config.construct import build
from trainer.config.rules import several_labels_findings
from trainer.config.signatures import resolve
from trainer.input.source import Source
from trainer.input.store import recipe_of
from trainer.process.console import bar
from trainer.process.errors import (
    ConfigError,
    OutOfMemory,
    in_plain_words,
    is_of_machinery,
    refusal_of,
)

SHOWN = 10  # images that are named in a message


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
        names = group_names(kind, value, dataset)
        if not any(names):
            raise ValueError(f"finds no group: no image is in one; the first is {dataset.ids[0]!r}")
    except ValueError as error:
        raise ConfigError([config.fault(f"split.group.{kind}", str(error))]) from None
    return names


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


def how_split(config: Config, by_name: bool = False, fixes: Fixes | None = None) -> dict[str, Any]:
    """The settings of the split, as split.json holds them."""
    ratios, seed, pool = config.split.ratios, config.split.seed, config.split.pool
    how: dict[str, Any] = {"ratios": [float(ratio) for ratio in ratios]}
    if config.split.folds is not None:
        how = {"folds": config.split.folds, "fold": config.split.fold}
    how |= {"seed": seed, "pool": pool} | ({"by": "name"} if by_name else {})
    how |= {"group": grouped} if (grouped := in_words(config.split.group)) else {}
    return how | ({} if fixes is None else {"fixes": fixes.digest})


def open_dataset(config: Config, least_classes: int = 2) -> Dataset:
    """The config's dataset. Raises ConfigError for bad arguments, DataError for too few classes."""
    try:
        dataset: Dataset = build(DATASETS, "dataset", config.dataset)
    except DataError:
        raise
    except Exception as error:
        if isinstance(in_plain_words(error), OutOfMemory) or is_of_machinery(error):
            raise
        message = f"cannot be opened: {refusal_of(error)}"
        raise ConfigError([config.fault("dataset", message)]) from error
    if len(dataset.classes) < least_classes:
        raise DataError(
            f"{config.dataset.name} gives one class only, {dataset.classes[0]!r} "
            f"({counted(len(dataset), 'image')}); expected at least two. Is dataset.root, or the "
            "column of the labels, the right one?"
        )
    if has_several_labels(dataset.labels):
        found = several_labels_findings(config.model_dump(mode="json"))
        if faults := [config.fault(".".join(map(str, f.place)), f.message) for f in found]:
            raise ConfigError(faults)
    return dataset


class BrokenImages(DataError):
    """All images that cannot be read, in one message, which names the first of them."""

    def __init__(self, errors: Collection[BrokenImage], images: int) -> None:
        lines = [f"{error.path}: {error.reason}" for error in islice(errors, SHOWN)]
        if (more := len(errors) - SHOWN) > 0:
            lines.append(f"... and {more:,} more; python -m trainer.data lists all in data.json")
        told = "".join(f"\n  {line}" for line in lines)
        super().__init__(
            f"{len(errors):,} of {images:,} images cannot be read:{told}\n"
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
