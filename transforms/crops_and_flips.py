"""Batched crops and flips, bitwise equal to torchvision's."""

from typing import Any

import torch
import torchvision.transforms.v2 as v2
from torch import Tensor

from transforms.kernel import Kernel, Parameters, Size
from transforms.keyed import Draws


def _padding(transform: v2.RandomCrop, height: Any, width: Any) -> tuple[Any, Any, Any, Any]:
    """Left, top, right and bottom padding in pixels for images of this size, or of (B,) sizes."""
    left, right, top, bottom = transform.padding or (0, 0, 0, 0)
    if transform.pad_if_needed:  # torchvision pads each side by the full difference
        missing_rows = _at_least_0(transform.size[0] - (height + top + bottom))
        missing_columns = _at_least_0(transform.size[1] - (width + left + right))
        top, bottom = top + missing_rows, bottom + missing_rows
        left, right = left + missing_columns, right + missing_columns
    return left, top, right, bottom


def _at_least_0(number: Any) -> Any:
    return number.clamp(min=0) if isinstance(number, Tensor) else max(0, number)


def draw_crop(transform: v2.RandomCrop, size: Size, draws: Draws) -> Parameters:
    """top and left, (B,) int64, of crops in the padded image. ValueError if that is too small."""
    left, top, right, bottom = _padding(transform, *size[1:])
    height, width = size[1] + top + bottom, size[2] + left + right
    rows, columns = height - transform.size[0] + 1, width - transform.size[1] + 1
    if isinstance(rows, Tensor) or rows < 1 or columns < 1:
        _require_room(transform, torch.as_tensor(height), torch.as_tensor(width))
    return {"top": draws.integers(rows), "left": draws.integers(columns)}


def _require_room(transform: v2.RandomCrop, height: Tensor, width: Tensor) -> None:
    too_small = (height < transform.size[0]) | (width < transform.size[1])
    if too_small.any():
        raise ValueError(
            f"a crop of {transform.size[0]} x {transform.size[1]} is larger than the padded image "
            f"of {height[too_small][0]} x {width[too_small][0]}; make it smaller, or add padding "
            "or Resize"
        )


def _padded(transform: v2.RandomCrop, images: Tensor) -> Tensor:
    padding = _padding(transform, *images.shape[-2:])
    if any(padding):
        images = v2.functional.pad(
            images, list(padding), fill=transform.fill, padding_mode=transform.padding_mode
        )
    return images


def crop(transform: v2.RandomCrop, images: Tensor, parameters: Parameters) -> Tensor:
    """Pad as set in ``transform``, then crop each sample at its own position."""
    images = _padded(transform, images)
    count, channels, padded_height, padded_width = images.shape
    height, width = transform.size
    # Each row of each crop is contiguous in memory. Copying rows is several times faster than
    # indexing every pixel.
    pixels = images.contiguous().flatten()
    row_windows = pixels.as_strided((len(pixels) - width + 1, width), (1, 1))
    corners = (parameters["top"] * padded_width + parameters["left"])[:, None, None]
    planes = torch.arange(count * channels).view(count, channels, 1) * (
        padded_height * padded_width
    )
    starts = corners + planes + torch.arange(height) * padded_width  # (B, C, height)
    starts = starts.flatten().to(images.device, non_blocking=True)
    return row_windows.index_select(0, starts).view(count, channels, height, width)


def crop_one(transform: v2.RandomCrop, image: Tensor, parameters: dict[str, int]) -> Tensor:
    """``crop`` of one image: a view, unless it is padded."""
    top, left = parameters["top"], parameters["left"]
    height, width = transform.size
    return _padded(transform, image)[..., top : top + height, left : left + width]


def draw_flip(transform: Any, size: Size, draws: Draws) -> Parameters:
    """chosen (B,) bool: the samples to flip."""
    return {"chosen": draws.uniform() < transform.p}


def draw_alternating_flip(transform: Any, size: Size, draws: Draws) -> Parameters:
    """chosen (B,) bool: if it alternates, a random half in epoch 0, the others in epoch 1..."""
    if not transform.alternate:
        return draw_flip(transform, size, draws)
    first = draws.of_epoch(0).uniform() < 0.5
    return {"chosen": first ^ (draws.epoch % 2 == 1)}


def flip(images: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """``images`` with dimension ``dim`` reversed in the chosen samples."""
    rows = torch.arange(len(images)) + len(images) * chosen
    # index_select copies whole samples: several times faster than torch.where.
    both = torch.cat([images, images.flip(dim)])
    return both.index_select(0, rows.to(images.device, non_blocking=True))


def flip_horizontally(transform: Any, images: Tensor, parameters: Parameters) -> Tensor:
    """Mirror the chosen samples left to right."""
    return flip(images, parameters["chosen"], dim=-1)


def flip_vertically(transform: Any, images: Tensor, parameters: Parameters) -> Tensor:
    """Turn the chosen samples upside down."""
    return flip(images, parameters["chosen"], dim=-2)


def flip_one_horizontally(transform: Any, image: Tensor, parameters: dict[str, bool]) -> Tensor:
    """``flip_horizontally`` of one image."""
    return image.flip(-1) if parameters["chosen"] else image


def flip_one_vertically(transform: Any, image: Tensor, parameters: dict[str, bool]) -> Tensor:
    """``flip_vertically`` of one image."""
    return image.flip(-2) if parameters["chosen"] else image


RANDOM_CROP = Kernel(draw_crop, crop, one=crop_one)
RANDOM_HORIZONTAL_FLIP = Kernel(draw_flip, flip_horizontally, one=flip_one_horizontally)
RANDOM_VERTICAL_FLIP = Kernel(draw_flip, flip_vertically, one=flip_one_vertically)
ALTERNATING_HORIZONTAL_FLIP = RANDOM_HORIZONTAL_FLIP._replace(draw=draw_alternating_flip)
ALTERNATING_VERTICAL_FLIP = RANDOM_VERTICAL_FLIP._replace(draw=draw_alternating_flip)
