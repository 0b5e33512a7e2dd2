"""Facts about a dataset that matter before training, gathered in one pass over its images."""

import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from datasets import BrokenImage, DataError, Dataset, has_several_labels
from datasets.bands import NPY, form_in, notes_on_bits, notes_on_pictures
from datasets.duplicates import DETAIL, groups_of_pairs, is_flat, near_duplicates, thumbnail
from datasets.files import ImageFiles
from datasets.grouping import Groups
from datasets.images import FORMATS, notes_on
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
from trainer.input.data import build_pipelines, check_channels, digest_of_split, transform_fault
from trainer.input.kept import CPU
from trainer.input.source import Source
from trainer.input.subset import decodes_content
from trainer.process.console import bar
from trainer.process.errors import ConfigError
from transforms.pipeline import Pipeline

Outcome = TypeVar("Outcome")
FEW = 10  # with fewer images of a class in a split, the metrics of the class are coarse
SMALL_SPLIT = 100  # with fewer images in val or test, one image is more than 1 % of accuracy
IMBALANCE = 10
# Images whose facts are joined at once. One by one they would take ten times the memory, because
# each small tensor lies between blocks that were freed.
TOGETHER = 16
SLICE = 2**22  # values that are squared and summed at once


class ImageFacts(NamedTuple):
    """Facts about N images, whose pixels are not kept.

    sizes: height and width. raw, prepared: mean and mean square of each channel, (N, 2, C) float64
    in units of full scale, before and after the fixed transforms. thumbnails: (N, 32, 32) uint8.
    forms: such as "JPEG RGB", "" if there is no file of its own.
    """

    sizes: list[tuple[int, int]]
    raw: Tensor
    prepared: Tensor
    thumbnails: Tensor
    forms: list[str]


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
    sizes, raw, prepared, thumbnails, found_forms = found  # row r of each is sample usable[r]
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
    forms = Counter(form for form in found_forms if form)
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
        "pixels": pixels_of(config, pipelines["eval"], raw[rows], prepared[rows]),
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


def read_all(
    dataset: Dataset, pipeline: Pipeline
) -> tuple[list[str], ImageFacts, list[BrokenImage]]:
    """Return the digest of each sample ("" if broken), facts of the others, and the broken ones."""
    known = dataset.digests(range(len(dataset)))
    if dataset.images is not None and known is not None:  # none can be broken
        chunks = torch.split(dataset.images, 2048)
        watched = bar(chunks, "looking at images", len(chunks), unit="chunk")
        return known, join_facts([image_facts(chunk, pipeline, "") for chunk in watched]), []

    def read_some(first: int) -> tuple[list[str], list[ImageFacts], list[BrokenImage]]:
        digests: list[str] = []
        facts: list[ImageFacts] = []
        broken: list[BrokenImage] = []
        for index in range(first, min(first + TOGETHER, len(dataset))):
            try:
                digest, image, form = read_sample(dataset, index)
            except BrokenImage as error:
                digests.append("")
                broken.append(error)
            else:
                digests.append(digest)
                facts.append(image_facts(image[None], pipeline, form))
        alike = len({one.raw.shape[-1] for one in facts}) == 1
        return digests, [join_facts(facts)] if alike else facts, broken

    firsts = range(0, len(dataset), TOGETHER)
    found = in_threads(read_some, firsts, f"looking at images, by {TOGETHER}")
    broken = [error for _, _, errors in found for error in errors]
    facts = [one for _, some, _ in found for one in some]
    if not facts:
        raise BrokenImages(broken, len(dataset))
    digests = [digest for digests, _, _ in found for digest in digests]
    readable = [name for name, digest in zip(dataset.ids, digests, strict=True) if digest]
    check_channels(count_channels(facts, readable))
    return digests, join_facts(facts), broken


def count_channels(facts: Sequence[ImageFacts], names: Sequence[str]) -> dict[int, tuple[int, str]]:
    """How many images have each number of channels, and the first of them; ``names``: of all."""
    found, done = dict[int, tuple[int, str]](), 0
    for some in facts:
        number, first = found.get(some.raw.shape[-1], (0, names[done]))
        found[some.raw.shape[-1]] = number + len(some.sizes), first
        done += len(some.sizes)
    return found


def read_sample(dataset: Any, index: int) -> tuple[str, Tensor, str]:
    """Return digest, pixels (C, H, W) uint8 and form of a sample; its file is read once.

    It is read twice if the class overrides ``image`` or has no ``content``. Raises BrokenImage.
    """
    if not hasattr(dataset, "content"):
        return dataset.digest(index), dataset.image(index), ""
    content = dataset.content(index)
    is_decoded = decodes_content(type(dataset))
    image = dataset.decode(index, content) if is_decoded else dataset.image(index)
    form = form_of(content) if isinstance(dataset, ImageFiles) else ""
    return hashlib.sha256(content).hexdigest(), image, form


def join_facts(chunks: Sequence[ImageFacts]) -> ImageFacts:
    """Concatenate the facts of several chunks of images."""
    return ImageFacts(
        [size for chunk in chunks for size in chunk.sizes],
        torch.cat([chunk.raw for chunk in chunks]),
        torch.cat([chunk.prepared for chunk in chunks]),
        torch.cat([chunk.thumbnails for chunk in chunks]),
        [form for chunk in chunks for form in chunk.forms],
    )


def image_facts(images: Tensor, pipeline: Pipeline, form: str) -> ImageFacts:
    """Return the facts of images (N, C, H, W) uint8 of one size and form."""
    count, _, height, width = images.shape
    raw = moments(images)
    prepared = moments(pipeline.prepare(images)) if pipeline.fixed else raw
    return ImageFacts([(height, width)] * count, raw, prepared, thumbnail(images), [form] * count)


def moments(images: Tensor) -> Tensor:
    """Return (N, 2, C): mean and mean square by channel of images (N, [crops,] C, H, W).

    They are uint8 or uint16.
    """
    if images.ndim == 5:  # FiveCrop or TenCrop: the crops of an image side by side
        images = images.transpose(1, 2).flatten(2, 3)
    sums = torch.zeros(2, *images.shape[:2], dtype=torch.int64)
    lines = max(1, SLICE // max(1, images[..., :1, :].numel()))
    for piece in torch.split(images, lines, dim=-2):
        values = piece.int() if images.dtype == torch.uint8 else piece.long()
        sums[0] += values.sum(dim=(-2, -1))
        sums[1] += values.square_().sum(dim=(-2, -1))
    pixels = images.shape[-2] * images.shape[-1]
    full = 255.0 if images.dtype == torch.uint8 else 65535.0
    scale = torch.tensor([full, full**2], dtype=torch.float64).view(2, 1, 1) * pixels
    return (sums / scale).transpose(0, 1)


def form_of(content: bytes) -> str:
    """Return format and mode of an image file's bytes, such as "JPEG RGB"."""
    if content.startswith(NPY):
        return "NPY array"
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return f"{image.format} {image.mode}"
    except Exception:  # damaged metadata may raise anything, although the image can be read
        return "unknown"


def groups_of_equals(usable: Sequence[int], digests: Sequence[str]) -> list[list[int]]:
    """Return the groups of samples of equal content."""
    groups: dict[str, list[int]] = {}
    for index in usable:
        groups.setdefault(digests[index], []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_in(
    dataset: Dataset,
    usable: Sequence[int],
    digests: Sequence[str],
    thumbnails: Tensor,
    sizes: Sequence[tuple[int, int]],
) -> list[tuple[list[int], float]]:
    """Return ``groups_of_pairs`` of nearly equal samples; of equal samples one is compared."""
    first: dict[str, int] = {}
    for row, index in enumerate(usable):
        if digests[index]:
            first.setdefault(digests[index], row)
    rows = list(first.values())

    def detail(numbers: list[int]) -> Tensor:
        indices = [usable[rows[number]] for number in numbers]
        details = in_threads(
            lambda index: thumbnail(dataset.image(index), DETAIL), indices, "reading again"
        )
        return torch.stack(details)

    shortest = torch.tensor([min(sizes[row]) for row in rows])
    found = near_duplicates(thumbnails[rows], shortest, detail, partial(bar, unit="chunk"))
    return [([usable[rows[k]] for k in group], score) for group, score in groups_of_pairs(found)]


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


def sizes_of(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return min, median and max of height, width and width / height, and the commonest sizes."""

    def spread(values: list[float]) -> dict[str, float]:
        values = sorted(values)
        return {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}

    count = Counter(sizes)
    return {
        "height": spread([height for height, _ in sizes]),
        "width": spread([width for _, width in sizes]),
        "aspect_ratio": spread([round(width / height, 3) for height, width in sizes]),
        "distinct": len(count),
        "most_common": [[*size, times] for size, times in count.most_common(5)],
    }


def pixels_of(config: Config, pipeline: Pipeline, raw: Tensor, prepared: Tensor) -> dict[str, Any]:
    """Return mean and std of the training images, from moments (N, 2, C), and the config's."""

    def mean_and_std(found: Tensor) -> dict[str, list[float]]:
        mean, square = found.mean(dim=0)
        std = (square - mean**2).clamp_min(0).sqrt()
        return {"mean": mean.tolist(), "std": std.tolist()}

    names = [name for name, way in pipeline.description if way == "once per sample"]
    measured = mean_and_std(prepared)
    mean, std = (", ".join(f"{x:.4f}" for x in measured[key]) for key in ("mean", "std"))
    written = next((t.arguments for t in config.transforms.train if t.name == "Normalize"), None)
    return {
        "images": len(prepared),
        "after": names,
        **measured,
        "yaml": f"- {{name: Normalize, mean: [{mean}], std: [{std}]}}"
        if min(measured["std"]) >= 5e-5
        else "# no Normalize: a channel has the same value everywhere, and its std is 0",
        "raw": mean_and_std(raw),
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
    """Return whether the config's Normalize is far from the measured mean and std."""
    written, channels = pixels["config"], len(pixels["mean"])
    if not written or not all(isinstance(written[key], list) for key in ("mean", "std")):
        return False
    pairs = [
        list(zip(pixels[key], written[key] * (channels // len(written[key]) or 1), strict=False))
        for key in ("mean", "std")
    ]
    return any(not math.isclose(x, y, abs_tol=0.02) for x, y in [*pairs[0], *pairs[1]])


def _first_classes(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown + (f" and {len(names) - 5} more classes" if len(names) > 5 else "")


def in_threads(
    function: Callable[[int], Outcome], items: Sequence[int], description: str
) -> list[Outcome]:
    """``function`` of each item, in order, by threads: decoding and hashing release the GIL."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(bar(pool.map(function, items), description, len(items)))
