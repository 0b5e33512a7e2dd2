"""Images decoded once, in threads, prepared, and kept in memory if they fit."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datasets import BrokenImage, DataError, Dataset
from trainer.config import Config
from trainer.input.subset import CPU, Subset
from trainer.process.console import bar
from trainer.process.launch import local_world_size
from transforms.batched import Images
from transforms.pipeline import Pipeline

Outcome = TypeVar("Outcome")
PROBED = 8  # images of a split that are decoded first, to learn their size


def read_subset(
    dataset: Dataset,
    pipeline: Pipeline,
    indices: Sequence[int],
    config: Config,
    device: torch.device,
) -> tuple[Subset, dict[int, BrokenImage]]:
    """Decode, prepare and keep a split. Returns its Subset, and the broken images by index.

    ``indices`` are the split's samples in the dataset. Raises DataError if ``loader.cache`` is not
    possible.
    """
    rows = torch.tensor(indices, dtype=torch.int64)
    labels = torch.tensor(dataset.labels, dtype=torch.int64)[rows]
    decode = partial(attempt, lambda index: pipeline.prepare(dataset.image(index)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        probed = list(pool.map(decode, indices[:PROBED]))
    first = [image for image in probed if isinstance(image, Tensor)]
    place = choose_place(config, dataset, pipeline, first, len(indices), device)
    if dataset.images is not None:  # none can be broken, and all have one size
        kept = prepare_all(dataset.images, pipeline, rows, first[0].shape, place)
        return Subset(dataset, pipeline, rows, labels, kept, torch.arange(len(rows))[:2]), {}
    if place is None and dataset.digests(indices[:1]) is not None:  # shards: checked when packed
        indices = indices[:PROBED]
    images, shapes, broken = decode_all(decode, indices, probed, place)
    return Subset(dataset, pipeline, rows, labels, images, extreme_rows(shapes)), broken


def prepare_all(
    images: Tensor, pipeline: Pipeline, rows: Tensor, shape: torch.Size, place: torch.device | None
) -> Tensor | None:
    """``rows`` of a dataset in memory, each prepared to ``shape``, at ``place``; None without."""
    if place is None:
        return None
    kept = torch.empty((len(rows), *shape), dtype=torch.uint8, device=place)
    chunks = torch.split(torch.arange(len(rows)), 4096)
    for chunk in bar(chunks, "preparing images", len(chunks), unit="chunk"):
        kept[chunk[0] : chunk[-1] + 1] = pipeline.prepare(images.index_select(0, rows[chunk]))
    return kept


def decode_all(
    decode: Callable[[int], Tensor | BrokenImage],
    indices: Sequence[int],
    probed: Sequence[Tensor | BrokenImage],
    place: torch.device | None,
) -> tuple[Images | None, list[torch.Size], dict[int, BrokenImage]]:
    """The images at ``place``, their shapes, and the broken ones by index.

    ``probed`` are the results of the first indices. Images are None if there is no place for them
    or some are broken.
    """
    # Filled by the threads as they go: a list that is stacked at the end takes the memory twice.
    table, others = torch.empty(0, dtype=torch.uint8), dict[int, Tensor]()
    sizes = {image.shape for image in probed if isinstance(image, Tensor)}
    if place is not None and len(sizes) == 1:
        table = torch.empty((len(indices), *sizes.pop()), dtype=torch.uint8)

    def keep(row: int) -> torch.Size | BrokenImage:
        image = probed[row] if row < len(probed) else decode(indices[row])
        if isinstance(image, BrokenImage):
            return image
        if len(table) and image.shape == table.shape[1:]:
            table[row] = image
        elif place is not None:
            others[row] = image
        return image.shape

    action = "checking images" if place is None else "decoding images"
    results = dict(zip(indices, in_threads(keep, range(len(indices)), action), strict=True))
    broken = {index: found for index, found in results.items() if isinstance(found, BrokenImage)}
    shapes = [found for found in results.values() if not isinstance(found, BrokenImage)]
    if place is None or broken:
        return None, shapes, broken
    if others:
        return [others[i] if i in others else table[i] for i in range(len(indices))], shapes, {}
    return table.to(place), shapes, {}


def extreme_rows(shapes: Sequence[torch.Size]) -> Tensor:
    """The rows of the lowest, narrowest, highest and widest images, and the first two rows."""
    rows = range(len(shapes))
    sides = [lambda row: shapes[row][-2], lambda row: shapes[row][-1]]
    chosen = (
        {choose(rows, key=side) for side in sides for choose in (min, max)} if shapes else set()
    )
    return torch.tensor(sorted(chosen | set(rows[:2])), dtype=torch.int64)


def choose_place(
    config: Config,
    dataset: Dataset,
    pipeline: Pipeline,
    first: Sequence[Tensor],
    count: int,
    device: torch.device,
) -> torch.device | None:
    """Where ``count`` images of the size of the ``first`` ones are kept; None is nowhere."""
    size = sum(image.nbytes for image in first) * count // max(len(first), 1)
    one_size = len({image.shape for image in first}) <= 1
    if not one_size and config.loader.cache == "device" and device.type != "cpu":
        raise DataError("loader.cache: device needs images of one size: let a Resize come first.")
    place = choose_cache(config, pipeline, size, device if one_size else CPU)
    is_decoded_on_the_way = dataset.images is None and place not in (None, CPU)
    if config.loader.cache == "auto" and is_decoded_on_the_way and size > free_memory(CPU) // 2:
        return None  # files are decoded into main memory first
    return place


def choose_cache(
    config: Config, pipeline: Pipeline, size: int, device: torch.device
) -> torch.device | None:
    """Where a split of ``size`` bytes is kept: on the device, in main memory, or nowhere (None).

    ``auto`` takes the first of these with enough free memory: 4 times ``size`` on the device,
    2 times in main memory. Raises DataError if ``ram`` or ``device`` is not possible.
    """
    wanted = config.loader.cache
    # Transforms that run per sample run in other processes, which cannot share a device's memory.
    on_device = device.type != "cpu" and not pipeline.early(cached=True)
    if wanted == "off":
        return None
    if wanted == "auto":
        if on_device and size < free_memory(device) // 4:
            return device
        return CPU if size < free_memory(CPU) // 2 else None
    if wanted == "device" and device.type != "cpu" and not on_device:
        names = pipeline.without_batched_form
        raise DataError(
            f"loader.cache: device cannot be with {', '.join(names)}, which has no batched form: "
            "it works on images in main memory; use auto or ram."
        )
    place = device if wanted == "device" else CPU
    if size > (free := free_memory(place)):
        raise DataError(
            f"loader.cache: {wanted} needs {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            "free; use auto or off, or let a Resize come first."
        )
    return place


def free_memory(device: torch.device) -> int:
    """Free bytes on ``device``; for all but CUDA, this rank's share of free main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() // local_world_size()  # an Apple GPU shares it


def available_memory() -> int:
    """Free bytes of main memory without swapping; 4 GiB if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return 4 * 2**30


def attempt(function: Callable[[int], Outcome], index: int) -> Outcome | BrokenImage:
    """``function(index)``, or the BrokenImage that it raises, so that one message can name all."""
    try:
        return function(index)
    except BrokenImage as error:
        return error


def in_threads(
    function: Callable[[int], Outcome], items: Sequence[int], description: str
) -> list[Outcome]:
    """``function`` of each item, in order, by threads: decoding and hashing release the GIL."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(bar(pool.map(function, items), description, len(items)))
