"""Reading images once: decoded, prepared and kept in memory where they fit, in several threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datasets import BrokenImage, DataError, Dataset
from trainer.config import Config
from trainer.input.subset import Subset
from trainer.process.console import bar
from trainer.process.launch import local_world_size
from transforms.pipeline import Pipeline

Result = TypeVar("Result")
HOST = torch.device("cpu")


def read_subset(
    dataset: Dataset,
    pipeline: Pipeline,
    indices: Sequence[int],
    config: Config,
    device: torch.device,
) -> tuple[Subset, dict[int, BrokenImage]]:
    """A subset with its images prepared and kept as ``loader.cache`` says.

    Also returns the broken images by number; then nothing is kept.
    """
    rows = torch.tensor(indices, dtype=torch.int64)
    labels = torch.tensor(dataset.labels, dtype=torch.int64)[rows]

    def prepare(index: int) -> Tensor:
        return pipeline.prepare(dataset.image(index))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tried = list(pool.map(lambda index: attempt(prepare, index), indices[:8]))
    place = place_of(config, pipeline, tried, len(indices), device, dataset.images is not None)
    if dataset.images is not None:  # none can be broken, and all have one size
        images = prepared(dataset.images, pipeline, rows, place, tried)
        two = torch.arange(min(2, len(rows)))
        return Subset(dataset, pipeline, rows, labels, images, two), {}
    # Packed datasets were checked when they were packed.
    is_checked = place is None and dataset.digests(indices[:1]) is not None
    kept, shapes, broken = decoded(prepare, indices, tried, place, is_checked)
    return Subset(dataset, pipeline, rows, labels, kept, extreme_rows(shapes)), broken


def place_of(
    config: Config,
    pipeline: Pipeline,
    tried: Sequence[Tensor | BrokenImage],
    count: int,
    device: torch.device,
    in_memory: bool,
) -> torch.device | None:
    """Where ``count`` images like the ``tried`` ones are kept; None: nowhere.

    ``in_memory``: the dataset holds all images in memory already.
    """
    first = [image for image in tried if isinstance(image, Tensor)]
    size = sum(image.nbytes for image in first) * count // max(len(first), 1)
    one_size = len({image.shape for image in first}) <= 1
    if not one_size and config.loader.cache == "device" and device.type != "cpu":
        raise DataError("loader.cache: device needs images of one size: let a Resize come first.")
    place = choose_cache(config, pipeline, size, device if one_size else HOST)
    on_the_way = 0 if in_memory or place in (None, HOST) else size
    if config.loader.cache == "auto" and on_the_way > free_memory(HOST) // 2:
        return None  # files are decoded into main memory first
    return place


def prepared(
    source: Tensor,
    pipeline: Pipeline,
    rows: Tensor,
    place: torch.device | None,
    tried: Sequence[Tensor | BrokenImage],
) -> Tensor | None:
    """The prepared images of a dataset that is in memory; None if none are kept."""
    if place is None:
        return None
    assert isinstance(tried[0], Tensor)
    images = torch.empty((len(rows), *tried[0].shape), dtype=torch.uint8, device=place)
    chunks = torch.split(torch.arange(len(rows)), 4096)
    for chunk in bar(chunks, "preparing images", len(chunks), unit="chunk"):
        chosen = pipeline.prepare(source.index_select(0, rows[chunk]))
        images[chunk[0] : chunk[-1] + 1] = chosen
    return images


def decoded(
    prepare: Callable[[int], Tensor],
    indices: Sequence[int],
    tried: Sequence[Tensor | BrokenImage],
    place: torch.device | None,
    is_checked: bool,
) -> tuple[Tensor | list[Tensor] | None, list[torch.Size], dict[int, BrokenImage]]:
    """Decode images in threads: those to keep, their shapes, and the broken ones by number.

    ``is_checked``: no image can be broken, so that the ``tried`` ones suffice for the shapes.
    """
    shapes = {image.shape for image in tried if isinstance(image, Tensor)}
    # The threads fill it as they go: a list that is stacked at the end takes the memory twice.
    table = torch.empty(0, dtype=torch.uint8)
    if place is not None and len(shapes) == 1:
        table = torch.empty((len(indices), *shapes.pop()), dtype=torch.uint8)

    def check(row: int) -> tuple[torch.Size, Tensor | None] | BrokenImage:
        image = tried[row] if row < len(tried) else attempt(prepare, indices[row])
        if isinstance(image, BrokenImage):
            return image
        if len(table) and image.shape == table.shape[1:]:
            table[row] = image
            return image.shape, None
        return image.shape, None if place is None else image

    action = "checking images" if place is None else "decoding images"
    results = in_threads(check, range(len(tried) if is_checked else len(indices)), action)
    pairs = zip(indices, results, strict=False)
    broken = {index: result for index, result in pairs if isinstance(result, BrokenImage)}
    read = [result for result in results if not isinstance(result, BrokenImage)]
    kept: Tensor | list[Tensor] | None = None
    if place is not None and not broken:
        kept = table.to(place)
        if any(image is not None for _, image in read):
            kept = [table[row] if image is None else image for row, (_, image) in enumerate(read)]
    return kept, [shape for shape, _ in read], broken


def extreme_rows(shapes: Sequence[torch.Size]) -> Tensor:
    """The rows of the lowest, narrowest, highest and widest images; two where all are alike."""
    rows = range(len(shapes))
    sides = [lambda row: shapes[row][-2], lambda row: shapes[row][-1]]
    chosen = (
        {choose(rows, key=side) for side in sides for choose in (min, max)} if shapes else set()
    )
    return torch.tensor(sorted(chosen | set(rows[:2])), dtype=torch.int64)


def choose_cache(
    config: Config, pipeline: Pipeline, size: int, device: torch.device
) -> torch.device | None:
    """Where a subset of ``size`` bytes is kept: on the device, in main memory, or nowhere (None).

    ``auto`` takes the first of these that has room to spare: a quarter of the device's free memory,
    half of the main one. Raises DataError where ``ram`` or ``device`` cannot be had.
    """
    wanted = config.loader.cache
    # What runs per sample runs in other processes, which cannot share a device's memory.
    on_device = device.type != "cpu" and not pipeline.early(cached=True)
    if wanted == "off":
        return None
    if wanted == "auto":
        if on_device and size < free_memory(device) // 4:
            return device
        return HOST if size < free_memory(HOST) // 2 else None
    if wanted == "device" and device.type != "cpu" and not on_device:
        names = pipeline.without_batched_form
        raise DataError(
            f"loader.cache: device cannot be with {', '.join(names)}, which has no batched form: "
            "it works on images in main memory; use auto or ram."
        )
    place = device if wanted == "device" else HOST
    if size > (free := free_memory(place)):
        raise DataError(
            f"loader.cache: {wanted} needs {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            "free; use auto or off, or let a Resize come first."
        )
    return place


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on ``device``; of main memory, without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // local_world_size()  # an Apple GPU shares it


def available_memory() -> int:
    """Bytes that can be taken without swapping; where the system does not say, 4 GiB."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return 4 * 2**30


def attempt(function: Callable[[int], Result], index: int) -> Result | BrokenImage:
    """``function(index)``, or the BrokenImage that it raises: so that all can be told at once."""
    try:
        return function(index)
    except BrokenImage as error:
        return error


def in_threads(
    function: Callable[[int], Result], items: Sequence[int], description: str
) -> list[Result]:
    """``function`` of each item, in order: decoding and hashing let other threads run."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(bar(pool.map(function, items), description, len(items)))
