"""What is to be known of a dataset before anything is trained on it, gathered in one pass."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from datasets import BrokenImage, DataError, Dataset
from datasets.files import ImageFiles
from datasets.images import FORMATS
from datasets.split import PARTS
from trainer.config import Config
from trainer.console import bar
from trainer.errors import ConfigError
from trainer.insight.duplicates import DETAIL, is_flat, near_duplicates, thumbnail
from trainer.parts import BrokenImages, build_pipelines, cut, open_dataset, transform_fault
from trainer.reading import attempt, in_threads
from transforms.pipeline import Pipeline

FEW = 10  # images of a class in a part, below which its numbers are coarse
SMALL_PART = 100  # images of val or test, below which one of them is a point of accuracy
IMBALANCE = 10
# Images whose results are joined at once: kept one by one, they take ten times the memory, for
# each lies between what was freed.
TOGETHER = 16
SLICE = 2**22  # values whose squares are summed in one go


class Seen(NamedTuple):
    """What is kept of N images: height and width, mean and mean square by channel, and so on.

    raw, prepared: (N, 2, C) float64 in units of full scale, before and after the fixed transforms.
    thumbnails: (N, 32, 32) uint8. forms: as "JPEG RGB", "" where there is no file.
    """

    sizes: list[tuple[int, int]]
    raw: Tensor
    prepared: Tensor
    thumbnails: Tensor
    forms: list[str]


@dataclass(frozen=True)
class Look:
    """A dataset as it was found. facts holds plain values only: it is what data.json holds.

    parts: the usable samples of train, val and test, as training would cut them. exact: groups of
    samples of equal content. near: pairs of samples and their likeness. broken: what has no pixels.
    """

    config: Config
    dataset: Dataset
    pipelines: dict[str, Pipeline]
    parts: dict[str, list[int]]
    exact: list[list[int]]
    near: list[tuple[int, int, float]]
    broken: list[BrokenImage]
    facts: dict[str, Any]

    def part_of(self) -> dict[int, str]:
        """The part of each usable sample."""
        return {index: part for part, indices in self.parts.items() for index in indices}


def look_at(config: Config, search_near: bool = True) -> Look:
    """Read every image once, cut the rest as ``on_broken: skip`` would, and count.

    Raises DataError where no split can be made of what can be read, ConfigError for a transform
    that refuses an image.
    """
    dataset = open_dataset(config)
    pipelines = build_pipelines(config, num_classes=len(dataset.classes))
    try:
        digests, seen, broken = read_all(dataset, pipelines["eval"])
    except ValueError as error:
        raise ConfigError([transform_fault(config, "eval", error)]) from None
    usable = [index for index in range(len(dataset)) if digests[index]]
    try:
        parts = cut(dataset, usable, digests, config)
    except DataError as error:
        if not broken:
            raise
        raise DataError(f"{error}\n{BrokenImages(broken, len(dataset))}") from None
    sizes, raw, prepared, thumbnails, found_forms = seen  # row r of each is sample usable[r]
    row_of = {index: row for row, index in enumerate(usable)}
    rows = torch.tensor([row_of[index] for index in parts["train"]])
    exact = groups_of_equals(usable, digests)
    near = near_in(dataset, usable, digests, thumbnails, sizes) if search_near else []
    part_of = {index: part for part, indices in parts.items() for index in indices}
    exact.sort(key=lambda group: _rank(dataset, part_of, group))
    near.sort(key=lambda pair: _rank(dataset, part_of, pair[:2]))  # stable: then by likeness

    def samples(indices: Sequence[int]) -> dict[str, Any]:
        told = [
            {"id": dataset.ids[i], "class": dataset.classes[dataset.labels[i]], "part": part_of[i]}
            for i in indices
        ]
        return {
            "across_parts": len({one["part"] for one in told}) > 1,
            "across_classes": len({one["class"] for one in told}) > 1,
            "samples": told,
        }

    flat = is_flat(thumbnails).nonzero().flatten().tolist()
    forms = Counter(form for form in found_forms if form)
    facts = {
        "dataset": {
            "name": config.dataset.name,
            "note": dataset.note,
            "images": len(dataset),
            "classes": list(dataset.classes),
        },
        "counts": counts_of(dataset, parts),
        "sizes": sizes_of(sizes),
        "formats": dict(forms.most_common()),
        "pixels": pixels_of(config, pipelines["eval"], raw[rows], prepared[rows]),
        "one_colour": [dataset.ids[usable[row]] for row in flat],
        "exact_duplicates": [samples(group) for group in exact],
        "near_searched": search_near,
        "near_duplicates": [samples((i, j)) | {"likeness": round(r, 4)} for i, j, r in near],
        "broken": [{"path": error.path, "reason": error.reason} for error in broken],
    }
    facts["warnings"] = warnings_about(facts)
    return Look(config, dataset, pipelines, parts, exact, near, broken, facts)


def read_all(dataset: Dataset, pipeline: Pipeline) -> tuple[list[str], Seen, list[BrokenImage]]:
    """Digests of all samples ("" for a broken one), what was seen of the others, and the broken."""
    known = dataset.digests(range(len(dataset)))
    if dataset.images is not None and known is not None:  # none can be broken
        chunks = torch.split(dataset.images, 2048)
        watched = bar(chunks, "looking at images", len(chunks), unit="chunk")
        return known, joined([see(chunk, pipeline, "") for chunk in watched]), []

    def look(index: int) -> tuple[str, Seen]:
        digest = known[index] if known is not None else dataset.digest(index)
        return digest, see(dataset.image(index)[None], pipeline, form_of(dataset, index))

    def look_at_some(first: int) -> tuple[list[str], Seen | None, list[BrokenImage]]:
        indices = range(first, min(first + TOGETHER, len(dataset)))
        results = [attempt(look, index) for index in indices]
        seen = [result[1] for result in results if not isinstance(result, BrokenImage)]
        return (
            ["" if isinstance(result, BrokenImage) else result[0] for result in results],
            joined(seen) if seen else None,
            [result for result in results if isinstance(result, BrokenImage)],
        )

    firsts = range(0, len(dataset), TOGETHER)
    found = in_threads(look_at_some, firsts, f"looking at images, by {TOGETHER}")
    broken = [error for _, _, errors in found for error in errors]
    seen = [some for _, some, _ in found if some is not None]
    if not seen:
        raise BrokenImages(broken, len(dataset))
    return [digest for digests, _, _ in found for digest in digests], joined(seen), broken


def joined(some: Sequence[Seen]) -> Seen:
    """All of them as one."""
    return Seen(
        [size for one in some for size in one.sizes],
        torch.cat([one.raw for one in some]),
        torch.cat([one.prepared for one in some]),
        torch.cat([one.thumbnails for one in some]),
        [form for one in some for form in one.forms],
    )


def see(images: Tensor, pipeline: Pipeline, form: str) -> Seen:
    """What is kept of images (N, C, H, W) uint8."""
    count, _, height, width = images.shape
    raw = moments(images)
    prepared = moments(pipeline.prepare(images)) if pipeline.fixed else raw
    return Seen([(height, width)] * count, raw, prepared, thumbnail(images), [form] * count)


def moments(images: Tensor) -> Tensor:
    """Mean and mean square of each channel of images (N, [crops,] C, H, W) uint8: (N, 2, C)."""
    if images.ndim == 5:  # FiveCrop or TenCrop: the crops of an image side by side
        images = images.transpose(1, 2).flatten(2, 3)
    sums = torch.zeros(2, *images.shape[:2], dtype=torch.int64)
    lines = max(1, SLICE // max(1, images[..., :1, :].numel()))
    for some in torch.split(images, lines, dim=-2):
        values = some.int()
        sums[0] += values.sum(dim=(-2, -1))
        sums[1] += values.square_().sum(dim=(-2, -1))
    pixels = images.shape[-2] * images.shape[-1]
    scale = torch.tensor([255.0, 255.0**2], dtype=torch.float64).view(2, 1, 1) * pixels
    return (sums / scale).transpose(0, 1)


def form_of(dataset: Dataset, index: int) -> str:
    """Format and mode of an image's file, as "JPEG RGB"; "" where images have no files."""
    if not isinstance(dataset, ImageFiles):
        return ""
    try:
        with Image.open(dataset.root / dataset.ids[index], formats=FORMATS) as image:
            return f"{image.format} {image.mode}"
    except Exception:  # damaged metadata raise anything, and whether it can be read is known
        return "unknown"


def groups_of_equals(usable: Sequence[int], digests: Sequence[str]) -> list[list[int]]:
    """The samples of each content that is there more than once."""
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
) -> list[tuple[int, int, float]]:
    """Pairs of samples that are nearly the same, and their likeness; of equal ones the first."""
    first: dict[str, int] = {}
    for row, index in enumerate(usable):
        first.setdefault(digests[index], row)
    rows = list(first.values())

    def detail(numbers: list[int]) -> Tensor:
        indices = [usable[rows[number]] for number in numbers]
        details = in_threads(
            lambda index: thumbnail(dataset.image(index), DETAIL), indices, "reading again"
        )
        return torch.stack(details)

    shortest = torch.tensor([min(sizes[row]) for row in rows])
    found = near_duplicates(thumbnails[rows], shortest, detail)
    return [(usable[rows[i]], usable[rows[j]], likeness) for i, j, likeness in found]


def _rank(dataset: Dataset, part_of: Mapping[int, str], group: Sequence[int]) -> tuple[bool, bool]:
    """Sort key: first what has two labels, then what is in two parts."""
    labels, parts = {dataset.labels[i] for i in group}, {part_of[i] for i in group}
    return len(parts) == 1, len(labels) == 1


def counts_of(dataset: Dataset, parts: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Images of each class in each part."""
    counted = {part: Counter(dataset.labels[i] for i in parts[part]) for part in PARTS}
    return {
        part: {name: count[label] for label, name in enumerate(dataset.classes)}
        for part, count in counted.items()
    }


def sizes_of(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Smallest, middle and largest height, width and width / height; the commonest sizes."""

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
    """Mean and std of the training images, in all as many pixels of each, beside the config's."""

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
    """What may spoil a result, the worst first: one sentence each."""
    told = []
    if broken := len(facts["broken"]):
        told.append(f"{broken} of {facts['dataset']['images']} images cannot be read.")
    exact, near = facts["exact_duplicates"], facts["near_duplicates"]
    kinds = (
        (exact, "groups of equal images", "what is tested was trained on"),
        (near, "pairs of similar images", "where they are copies, what is tested was trained on"),
    )
    for found, name, meaning in kinds:
        if count := sum(group["across_classes"] for group in found):
            told.append(f"{count} {name} are in different classes: one of the labels is wrong.")
        if count := sum(group["across_parts"] for group in found):
            told.append(f"{count} {name} are in different parts: {meaning}.")
    for part, counts in facts["counts"].items():
        if absent := [name for name, count in counts.items() if not count]:
            told.append(f"{part} has no image of {_some(absent)}.")
        if few := [name for name, count in counts.items() if 0 < count < FEW]:
            told.append(f"{part} has fewer than {FEW} images of {_some(few)}.")
    train = {name: count for name, count in facts["counts"]["train"].items() if count}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] > IMBALANCE * train[least]:
        told.append(
            f"train has {train[most] / train[least]:.0f} times as many images of '{most}' as of "
            f"'{least}': macro_f1 and loss.weight: balanced look at classes alike."
        )
    for part in ("val", "test"):
        if (total := sum(facts["counts"][part].values())) < SMALL_PART:
            told.append(
                f"{part} has {total} images: one of them is {100 / total:.1f} % of accuracy."
            )
    if one_colour := len(facts["one_colour"]):
        told.append(f"{one_colour} images are of nearly one colour.")
    return told


def differs(pixels: Mapping[str, Any]) -> bool:
    """Whether the config's Normalize is far from what was measured."""
    written, channels = pixels["config"], len(pixels["mean"])
    if not written or not all(isinstance(written[key], list) for key in ("mean", "std")):
        return False
    pairs = [
        list(zip(pixels[key], written[key] * (channels // len(written[key]) or 1), strict=False))
        for key in ("mean", "std")
    ]
    return any(not math.isclose(x, y, abs_tol=0.02) for x, y in [*pairs[0], *pairs[1]])


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown + (f" and {len(names) - 5} more classes" if len(names) > 5 else "")
