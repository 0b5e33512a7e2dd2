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
from trainer.console import bar
from trainer.loader import Part
from transforms.pipeline import Pipeline

Result = TypeVar("Result")


def read_part(
    dataset: Dataset, pipeline: Pipeline, indices: Sequence[int], config: Config
) -> tuple[Part, dict[int, BrokenImage], str]:
    """A part with its images prepared, kept in memory where they fit; the broken ones by number.

    The third value tells what was chosen, where that is not the usual.
    """
    rows = torch.tensor(indices, dtype=torch.int64)
    labels = torch.tensor([dataset.labels[index] for index in indices], dtype=torch.int64)
    if dataset.images is not None:  # in memory anyway: prepared in chunks, not image by image
        chunks = [pipeline.prepare(dataset.images[chunk]) for chunk in torch.split(rows, 4096)]
        first_two = torch.arange(min(2, len(rows)))
        return Part(dataset, pipeline, rows, labels, torch.cat(chunks), first_two), {}, ""

    def prepare(index: int) -> Tensor:
        return pipeline.prepare(dataset.image(index))

    tried = [attempt(prepare, index) for index in indices[:8]]
    first = [image for image in tried if isinstance(image, Tensor)]
    size = sum(image.nbytes for image in first) * len(indices) // max(len(first), 1)
    keep = keeps_in_memory(config, size)

    def check(index: int) -> tuple[torch.Size, Tensor | None] | BrokenImage:
        image = attempt(prepare, index)
        if isinstance(image, BrokenImage):
            return image
        return image.shape, image if keep else None

    results = in_threads(check, indices, "decoding images" if keep else "checking images")
    pairs = zip(indices, results, strict=True)
    broken = {index: result for index, result in pairs if isinstance(result, BrokenImage)}
    images: Tensor | list[Tensor] | None = None
    read = [result for result in results if not isinstance(result, BrokenImage)]
    if keep and not broken:
        images = [image for _, image in read if image is not None]
        if len({image.shape for image in images}) == 1:
            images = torch.stack(images)
    extremes = extreme_rows([shape for shape, _ in read])
    note = "" if keep else f"{size / 2**30:.1f} GiB, not kept in memory: decoded in every epoch"
    return Part(dataset, pipeline, rows, labels, images, extremes), broken, note


def extreme_rows(shapes: Sequence[torch.Size]) -> Tensor:
    """The rows of the lowest, narrowest, highest and widest images; two where all are alike."""
    rows = range(len(shapes))
    sides = [lambda row: shapes[row][-2], lambda row: shapes[row][-1]]
    chosen = (
        {choose(rows, key=side) for side in sides for choose in (min, max)} if shapes else set()
    )
    return torch.tensor(sorted(chosen | set(rows[:2])), dtype=torch.int64)


def keeps_in_memory(config: Config, size: int) -> bool:
    """Whether ``loader.cache`` keeps a part of ``size`` bytes; raises DataError where it cannot."""
    free = available_memory()
    if config.loader.cache == "ram" and size > free:
        raise DataError(
            f"loader.cache: ram needs {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "use auto or off, or let a Resize come first."
        )
    return config.loader.cache == "ram" or (config.loader.cache == "auto" and size < free // 2)


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
