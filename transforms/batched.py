"""Random transforms of a whole batch at once, with parameters drawn per sample.

Given the same parameters, each equals torchvision's transform of each sample, bit for bit.
To add one, write ``kernel(transform, images, keys)`` and its line in ``KERNELS``: images
(B, ..., C, H, W), uint8 or float32; keys (B,) int64, one a sample. A random transform without a
line runs per sample. Parameters are drawn where ``keys`` lie, then moved to the images' device:
some devices have no float64.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from transforms.keyed import integers, uniform


def random_crop(transform: v2.RandomCrop, images: Tensor, keys: Tensor) -> Tensor:
    """Pad as ``transform`` says, then crop each sample at its own place.

    Returns (B, ..., C, *transform.size). Raises ValueError if the padded images are smaller.
    """
    height, width = transform.size
    left, right, top, bottom = transform.padding or (0, 0, 0, 0)
    if transform.pad_if_needed:  # torchvision pads both sides by all that is missing
        missing_rows = max(0, height - (images.shape[-2] + top + bottom))
        missing_columns = max(0, width - (images.shape[-1] + left + right))
        top, bottom = top + missing_rows, bottom + missing_rows
        left, right = left + missing_columns, right + missing_columns
    if left or right or top or bottom:
        images = v2.functional.pad(
            images,
            [left, top, right, bottom],
            fill=transform.fill,
            padding_mode=transform.padding_mode,
        )
    rows, columns = images.shape[-2] - height + 1, images.shape[-1] - width + 1  # possible places
    if rows < 1 or columns < 1:
        raise ValueError(
            f"a crop of {height} x {width} is larger than the padded image of "
            f"{images.shape[-2]} x {images.shape[-1]}; make it smaller, or add padding or Resize"
        )
    tops = integers(keys, 0, rows).to(images.device, non_blocking=True)
    lefts = integers(keys, 1, columns).to(images.device, non_blocking=True)
    samples = torch.arange(len(images), device=images.device)
    windows = images.unfold(-2, height, 1).unfold(-2, width, 1)  # (B, ..., C, rows, columns, h, w)
    return windows[samples, ..., tops, lefts, :, :]


def random_flip(transform: Any, images: Tensor, keys: Tensor, dim: int) -> Tensor:
    """Reverse dimension ``dim`` of each sample with probability ``transform.p``."""
    flipped = (uniform(keys, 0) < transform.p).to(images.device, non_blocking=True)
    samples = torch.arange(len(images), device=images.device)
    # Choosing whole samples copies memory in blocks: several times faster than torch.where.
    both = torch.cat([images, images.flip(dim)])
    return both.index_select(0, samples + len(images) * flipped)


def random_horizontal_flip(
    transform: v2.RandomHorizontalFlip, images: Tensor, keys: Tensor
) -> Tensor:
    """Mirror each sample left to right with probability ``transform.p``."""
    return random_flip(transform, images, keys, dim=-1)


def random_vertical_flip(transform: v2.RandomVerticalFlip, images: Tensor, keys: Tensor) -> Tensor:
    """Turn each sample upside down with probability ``transform.p``."""
    return random_flip(transform, images, keys, dim=-2)


KERNELS: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    v2.RandomCrop: random_crop,
    v2.RandomHorizontalFlip: random_horizontal_flip,
    v2.RandomVerticalFlip: random_vertical_flip,
}
