"""Facts about a dataset that matter before training: counts, copies, pixels, warnings."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets import BrokenImage, DataError, Dataset, has_several_labels
from datasets.bands import form_in, notes_on_bits, notes_on_pictures
from datasets.duplicates import groups_of_equals, is_flat
from datasets.grouping import Groups
from datasets.images import notes_on
from datasets.split import PARTS, manifest
from datasets.words import label_words
from trainer.config import Config
from trainer.input.cut import (
    BrokenImages,
    classes_without_images,
    count_classes,
    cut,
    find_groups,
    fix,
    how_split,
    names_for_groups,
    notes_on_cut,
    notes_on_groups,
    open_dataset,
    open_fixes,
)
from trainer.input.data import build_pipelines, digest_of_split, transform_fault
from trainer.input.kept import CPU
from trainer.input.source import Source
from trainer.insight.image_facts import ImageFacts, before_pad, near_in, read_all, sizes_of
from trainer.process.errors import ConfigError
from transforms.pipeline import Pipeline

FEW = 10  # with fewer images of a class in a split, the metrics of the class are coarse
SMALL_SPLIT = 100  # with fewer images in val or test, one image is more than 1 % of accuracy
IMBALANCE = 10


@dataclass(frozen=True)
class Inspection:
    """What an inspection found. facts holds plain values only: the content of data.json.

    splits: the readable samples of train, val and test, as training splits them. exact: groups of
    samples of equal content. near: groups of similar samples and the least likeness of their
    pairs. broken: unreadable images. refused: why training would end with a DataError, or "".
    """

    config: Config
    dataset: Dataset
    pipelines: dict[str, Pipeline]
    splits: dict[str, list[int]]
    exact: list[list[int]]
    near: list[tuple[list[int], float]]
    broken: list[BrokenImage]
    facts: dict[str, Any]
    refused: str


def inspect_dataset(config: Config, search_near: bool = True) -> Inspection:
    """Read every image once, split the readable ones, and gather the facts.

    search_near: look for similar images too. Raises DataError if the readable images cannot be
    split, ConfigError if a transform refuses an image.
    """
    dataset = open_dataset(config)
    fixes, names_of_groups = open_fixes(config, dataset), names_for_groups(config, dataset)
    pipelines = build_pipelines(config, num_classes=len(dataset.classes))
    try:
        digests, found, broken = read_all(dataset, pipelines["eval"])
    except ValueError as error:
        raise ConfigError([transform_fault(config, "eval", error)]) from None
    usable = [index for index in range(len(dataset)) if digests[index]]
    source = Source(dataset, pipelines, config, CPU)
    fixed = fix(source, fixes, digests)
    keys = source.split_keys() if source.is_by_name else digests
    groups = find_groups(source, keys, names_of_groups)
    digests = ["" if i in source.left_out else digest for i, digest in enumerate(digests)]
    try:
        cut_by_training = split_as_training(source, digests, groups)
    except DataError as error:
        if not broken:
            raise
        raise DataError(f"{error}\n{BrokenImages(broken, len(dataset))}") from None
    splits = {name: [i for i in rows if digests[i]] for name, rows in cut_by_training.items()}
    sizes, raw, thumbnails = found.sizes, found.raw, found.thumbnails  # row r: sample usable[r]
    row_of = {index: row for row, index in enumerate(usable)}
    rows = torch.tensor([row_of[index] for index in splits["train"]])
    exact = groups_of_equals([index for index in usable if digests[index]], digests)
    near = near_in(dataset, usable, digests, thumbnails, sizes) if search_near else []
    split_of = split_of_each(splits)
    exact.sort(key=lambda group: _rank(dataset, split_of, group))
    near.sort(key=lambda one: _rank(dataset, split_of, one[0]))  # stable: then by likeness

    def samples(indices: Sequence[int]) -> dict[str, Any]:
        entries = [
            {
                "id": dataset.ids[i],
                "class": label_words(dataset.labels[i], dataset.classes),
                "part": split_of[i],
            }
            for i in indices
        ]
        return {
            "across_parts": len({entry["part"] for entry in entries}) > 1,
            "across_classes": len({entry["class"] for entry in entries}) > 1,
            "samples": entries,
        }

    notes = dataset.note.splitlines() + fixed + notes_on_cut(dataset, splits, config)
    notes += notes_on_groups(dataset, groups, splits, config)
    by_name = source.is_by_name
    names = source.identities() if by_name else digests
    flat = is_flat(thumbnails).nonzero().flatten().tolist()
    forms = Counter(form for form in found.forms if form)
    remarks = getattr(dataset, "remarks", b"")
    converted = notes_on(remarks) + notes_on_bits(remarks)
    converted += notes_on_pictures(form_in(config.dataset.arguments), [raw.shape[-1]])
    facts = {
        "dataset": {
            "name": config.dataset.name,
            "note": "\n".join(notes),
            "images": len(dataset),
            "classes": list(dataset.classes),
        },
        "split": digest_of_split(
            how_split(config, by_name, fixes) | manifest(cut_by_training, dataset.ids, names)
        ),
        "counts": counts_of(dataset, splits),
        "images_of_splits": {split: len(splits[split]) for split in PARTS},
        "several_labels": has_several_labels(dataset.labels),
        "sizes": sizes_of(sizes),
        "formats": dict(forms.most_common()),
        "converted": converted,
        "pixels": pixels_of(config, pipelines["eval"], found, rows),
        "one_colour": [dataset.ids[usable[row]] for row in flat if digests[usable[row]]],
        "exact_duplicates": [samples(group) for group in exact],
        "groups": None if groups is None else groups.facts(splits),
        "near_searched": search_near,
        "near_duplicates": [samples(group) | {"likeness": round(r, 4)} for group, r in near],
        "broken": [{"path": error.path, "reason": error.reason} for error in broken],
    }
    facts["warnings"] = warnings_about(facts)
    refused = ""
    try:
        classes_without_images(dataset, cut_by_training, config)
    except DataError as error:
        refused = f"{error}"
    return Inspection(config, dataset, pipelines, splits, exact, near, broken, facts, refused)


def split_as_training(
    source: Source, digests: Sequence[str], groups: Groups | None
) -> dict[str, list[int]]:
    """Return the samples of train, val and test in training; ``digests``: "" for broken ones.

    Of a split by name, broken samples of train are in it: training shows others in their place.
    Raises DataError as ``cut`` does.
    """
    dataset = source.dataset
    broken = {index for index, digest in enumerate(digests) if not digest}
    keys, removed = digests, broken
    if source.is_by_name:
        keys, removed = source.split_keys(), set[int]()
    while True:
        usable = [index for index in range(len(dataset)) if index not in removed]
        splits = cut(dataset, usable, keys, source.config, groups)
        if not (found := broken.intersection([*splits["val"], *splits["test"]])):
            return splits
        removed |= found


def split_of_each(splits: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """Return the name of the split that holds each sample."""
    return {index: name for name, indices in splits.items() for index in indices}


def _rank(dataset: Dataset, split_of: Mapping[int, str], group: Sequence[int]) -> tuple[bool, bool]:
    """Return a sort key: groups in several splits first, then groups of several classes."""
    labels, splits = {dataset.labels[i] for i in group}, {split_of[i] for i in group}
    return len(splits) == 1, len(labels) == 1


def counts_of(dataset: Dataset, splits: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Return the number of images of each class in each split."""
    counted = {split: count_classes(dataset.labels, splits[split]) for split in PARTS}
    return {
        split: {name: count[label] for label, name in enumerate(dataset.classes)}
        for split, count in counted.items()
    }


def pixels_of(
    config: Config, pipeline: Pipeline, found: ImageFacts, rows: Tensor
) -> dict[str, Any]:
    """Return mean and std of the training images, which are these rows, and the config's."""

    def mean_and_std(moments: Tensor) -> dict[str, list[float]]:
        mean, square = moments[rows].mean(dim=0)
        std = (square - mean**2).clamp_min(0).sqrt()
        return {"mean": mean.tolist(), "std": std.tolist()}

    names = [name for name, way in pipeline.description if way == "once per sample"]
    measured, bare = mean_and_std(found.prepared), before_pad(pipeline)
    mean, std = (", ".join(f"{x:.4f}" for x in measured[key]) for key in ("mean", "std"))
    written = next((t.arguments for t in config.transforms.train if t.name == "Normalize"), None)
    return {
        "images": len(rows),
        "after": names,
        **measured,
        "yaml": f"- {{name: Normalize, mean: [{mean}], std: [{std}]}}"
        if min(measured["std"]) >= 5e-5
        else "# no Normalize: a channel has the same value everywhere, and its std is 0",
        "raw": mean_and_std(found.raw),
        "before_pad": bare and {"after": names[: len(bare.fixed)], **mean_and_std(found.unpadded)},
        "config": written and {key: written.get(key) for key in ("mean", "std")},
    }


def warnings_about(facts: Mapping[str, Any]) -> list[str]:
    """Return warnings about what may spoil a result: one sentence each, the worst first."""
    messages = []
    if broken := len(facts["broken"]):
        messages.append(f"{broken} of {facts['dataset']['images']} images cannot be read.")
    exact, near = facts["exact_duplicates"], facts["near_duplicates"]
    kinds = (
        (exact, "groups of equal images", "what is tested was trained on"),
        (near, "groups of similar images", "where they are copies, what is tested was trained on"),
    )
    for found, name, meaning in kinds:
        if count := sum(group["across_classes"] for group in found):
            messages.append(f"{count} {name} are in different classes: one of the labels is wrong.")
        if count := sum(group["across_parts"] for group in found):
            messages.append(f"{count} {name} are in different splits: {meaning}.")
    for split, counts in facts["counts"].items():
        if absent := [name for name, count in counts.items() if not count]:
            messages.append(f"{split} has no image of {_first_classes(absent)}.")
        if few := [name for name, count in counts.items() if 0 < count < FEW]:
            messages.append(f"{split} has fewer than {FEW} images of {_first_classes(few)}.")
    train = {name: count for name, count in facts["counts"]["train"].items() if count}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] > IMBALANCE * train[least]:
        weight = "pos_weight" if facts["several_labels"] else "weight"
        messages.append(
            f"train has {train[most] / train[least]:.0f} times as many images of '{most}' as of "
            f"'{least}': macro_f1 and loss.{weight}: balanced look at classes alike."
        )
    for split in ("val", "test"):
        if (total := facts["images_of_splits"][split]) < SMALL_SPLIT:
            messages.append(
                f"{split} has {total} images: one of them is {100 / total:.1f} % of accuracy."
            )
    if one_colour := len(facts["one_colour"]):
        messages.append(f"{one_colour} images are of nearly one colour.")
    return messages


def differs(pixels: Mapping[str, Any]) -> bool:
    """Return whether the config's Normalize is far from all that was measured after transforms.

    An edge of ``Pad`` may count or not: ``trainer.new`` writes the numbers without it.
    """
    every = (pixels, pixels["before_pad"])
    return not any(agrees(pixels["config"], measured) for measured in every)


def agrees(written: Any, measured: Mapping[str, Any] | None) -> bool:
    """Return whether mean and std of the config are near the measured ones, or are no numbers."""
    if measured is None:
        return False
    if not written or not all(isinstance(written[key], list) for key in ("mean", "std")):
        return True
    channels = len(measured["mean"])
    pairs = [
        list(zip(measured[key], written[key] * (channels // len(written[key]) or 1), strict=False))
        for key in ("mean", "std")
    ]
    return all(math.isclose(x, y, abs_tol=0.02) for x, y in [*pairs[0], *pairs[1]])


def _first_classes(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown + (f" and {len(names) - 5} more classes" if len(names) > 5 else "")
