"""Random rectangles in an image, and RandomErasing, which fills them."""

import math
from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from transforms.kernel import Kernel, Parameters, change
from transforms.keyed import Draws

ATTEMPTS = 10  # random rectangles, of which the first that fits into the image is used


def random_rectangles(transform: Any, area: Any, draws: Draws) -> tuple[Tensor, Tensor]:
    """Two sides, each (B, ATTEMPTS) int64, of rectangles with random area and aspect ratio.

    The area, as a share of the image's ``area`` (one, or (B, 1)), is uniform in
    ``transform.scale``. The first side divided by the second is in ``transform.ratio``; its
    logarithm is uniform.
    """
    numbers = draws.many(2 * ATTEMPTS).double()
    least, most = transform.scale
    area = area * (least + (most - least) * numbers[:, :ATTEMPTS])
    low, high = map(math.log, transform.ratio)
    ratio = torch.exp(low + (high - low) * numbers[:, ATTEMPTS:])
    return torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()


def first_valid(valid: Tensor, values: Tensor, otherwise: int | Tensor) -> Tensor:
    """(B,): in each row of ``values`` (B, n) the first ``valid`` one, else ``otherwise``."""
    found = values.gather(1, valid.byte().argmax(1, keepdim=True))[:, 0]
    return torch.where(valid.any(1), found, otherwise)


def draw_erasing(
    transform: v2.RandomErasing, size: tuple[int, int, int], draws: Draws
) -> Parameters:
    """chosen (B,) bool: the samples to change; their rectangles: i (top), j (left), h, w (B,).

    noise (B,) int64: the seeds of the pixels if ``value`` is "random". Raises ValueError if
    ``value`` is a list whose length is not the number of channels.
    """
    channels, height, width = size
    if transform.value is not None and len(transform.value) not in (1, channels):
        raise ValueError(
            f"value has {len(transform.value)} numbers, and the images {channels} channels"
        )
    chosen = draws.uniform() < transform.p
    heights, widths = random_rectangles(transform, height * width, draws)
    valid = (heights < height) & (widths < width)
    h, w = first_valid(valid, heights, height), first_valid(valid, widths, width)
    return {
        "chosen": chosen & valid.any(1),
        "i": draws.integers(height - h + 1),
        "j": draws.integers(width - w + 1),
        "h": h,
        "w": w,
        "noise": (draws.integers(2**31) << 31) + draws.integers(2**31),
    }


def _normal(keys: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """(len(keys), *shape) standard normal numbers, a function of keys (Box and Muller, 1958)."""
    draws, count = Draws(0, 0, keys), math.prod(shape)
    half = (count + 1) // 2
    radius = torch.sqrt(-2 * torch.log(1 - draws.many(half, device)))
    angle = 2 * math.pi * draws.many(half, device)
    numbers = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
    return numbers[:, :count].view(-1, *shape)


def erase(transform: v2.RandomErasing, images: Tensor, parameters: Parameters) -> Tensor:
    """Set the rectangles of the chosen samples to ``transform.value``; None stands for "random"."""

    def paint(images: Tensor, chosen: Tensor) -> Tensor:
        top, left, height, width = (
            parameters[name][chosen, None, None, None].to(images.device, non_blocking=True)
            for name in "ijhw"
        )
        y = torch.arange(images.shape[2], device=images.device)[:, None]
        x = torch.arange(images.shape[3], device=images.device)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        if transform.value is None:
            value = _normal(parameters["noise"][chosen], images.shape[1:], images.device)
        else:
            value = torch.tensor(transform.value).view(-1, 1, 1)
        return torch.where(inside, value.to(images.device, images.dtype, non_blocking=True), images)

    return change(images, parameters["chosen"], paint)


RANDOM_ERASING = Kernel(draw_erasing, erase)
