"""Some images of a split, as pictures to look at."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import torch
from torch import Tensor

from datasets import BrokenImage, DataError
from trainer.input.subset import Subset, decoded
from transforms.own import Normalize
from transforms.pipeline import Pipeline


def spread(count: int, most: int) -> Tensor:
    """Return at most ``most`` of 0..count-1, evenly spaced, because files are sorted by class."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


def one_crop(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) as they are, or the first crop of each of (B, crops, C, H, W)."""
    return images if images.ndim == 4 else images.flatten(1, -4)[:, 0]


def original_image(subset: Subset, row: int, at_least: int = 0) -> Tensor:
    """Return an image of a split as the dataset gives it: (C, H, W) uint8.

    at_least: pixels of the shorter side that are needed, 0 for all; fewer may be decoded.
    If it is broken, and ``on_broken`` is skip, it is the next one that is not, as in training.
    """
    for one in chain(range(row, len(subset)), range(row)):
        try:
            return decoded(subset.dataset, int(subset.indices[one]), at_least)
        except BrokenImage:
            if subset.dataset.on_broken == "error":
                raise
    raise DataError("no image of this split can be read")


def original_images(subset: Subset, rows: Sequence[int], at_least: int) -> list[Tensor]:
    """Return ``original_image`` of each row, by threads: decoding releases the GIL."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda row: original_image(subset, row, at_least), rows))


def stored_image(subset: Subset, row: int) -> Tensor:
    """Return an image of a split from the cache, else from the dataset: (C, H, W) uint8."""
    if subset.images is None:
        return original_image(subset, row)
    image = subset.images[row].cpu()
    return image if image.ndim == 3 else image.flatten(0, -4)[0]


def as_pictures(pipeline: Pipeline, inputs: Tensor) -> Tensor:
    """Return a model's inputs (B, C, H, W) float as uint8 pictures, with Normalize undone.

    If values are then outside 0-1, the range is stretched to 0-1. Of images with more than 3
    channels, the first three are returned, of 2 the first.
    """
    images = inputs
    for transform in reversed((*pipeline.fixed, *pipeline.rest)):
        if isinstance(transform, Normalize):
            images = (images * transform.std.to(images.device)).add_(
                transform.mean.to(images.device)
            )
            break
    low, high = images.aminmax()
    if low < -0.01 or high > 1.01:
        images = (images - low) / (high - low)
    images = images[:, : 3 if images.shape[1] > 2 else 1]
    return (images * 255).round_().clamp_(0, 255).byte()
