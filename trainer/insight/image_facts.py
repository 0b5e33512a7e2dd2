"""Facts about each image of a dataset, gathered in one pass over their files."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torchvision.transforms.v2 as v2
from PIL import Image
from torch import Tensor

from datasets import BrokenImage, Dataset
from datasets.bands import NPY
from datasets.duplicates import DETAIL, groups_of_pairs, near_duplicates, thumbnail
from datasets.files import ImageFiles
from datasets.images import FORMATS
from trainer.input.cut import BrokenImages
from trainer.input.data import check_channels
from trainer.input.subset import decodes_content
from trainer.process.console import bar
from transforms.pipeline import Pipeline

Outcome = TypeVar("Outcome")
# Images whose facts are joined at once. One by one they would take ten times the memory, because
# each small tensor lies between blocks that were freed.
TOGETHER = 16
SLICE = 2**22  # values that are squared and summed at once


class ImageFacts(NamedTuple):
    """Facts about N images, whose pixels are not kept.

    sizes: height and width. raw, prepared: mean and mean square of each channel, (N, 2, C) float64
    in units of full scale, before and after the fixed transforms. thumbnails: (N, 32, 32) uint8.
    forms: such as "JPEG RGB", "" if there is no file of its own. unpadded: as prepared, but after
    the fixed transforms before ``Pad`` only.
    """

    sizes: list[tuple[int, int]]
    raw: Tensor
    prepared: Tensor
    thumbnails: Tensor
    forms: list[str]
    unpadded: Tensor


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
        torch.cat([chunk.unpadded for chunk in chunks]),
    )


def image_facts(images: Tensor, pipeline: Pipeline, form: str) -> ImageFacts:
    """Return the facts of images (N, C, H, W) uint8 of one size and form."""
    count, _, height, width = images.shape
    raw = moments(images)
    prepared = moments(pipeline.prepare(images)) if pipeline.fixed else raw
    bare = before_pad(pipeline)
    unpadded = prepared if bare is None else moments(bare.prepare(images))
    sizes = [(height, width)] * count
    return ImageFacts(sizes, raw, prepared, thumbnail(images), [form] * count, unpadded)


def before_pad(pipeline: Pipeline) -> Pipeline | None:
    """The fixed transforms before the first ``Pad``, whose edge is no picture; None without it."""
    pads = (i for i, transform in enumerate(pipeline.fixed) if isinstance(transform, v2.Pad))
    first = next(pads, None)
    return None if first is None else Pipeline(pipeline.fixed[:first], pipeline.seed)


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


def in_threads(
    function: Callable[[int], Outcome], items: Sequence[int], description: str
) -> list[Outcome]:
    """``function`` of each item, in order, by threads: decoding and hashing release the GIL."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(bar(pool.map(function, items), description, len(items)))
