"""The form of a batched random transform: draw parameters per sample, apply them to the batch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transforms.keyed import Draws

# Values (C * H * W) of an image and its result together, from which on a call per image is faster
# than a batched one: measured for images of 28 to 224 pixels a side, of 1 and 3 channels.
LARGE = 2**15

Parameters = dict[str, Tensor]
Size = tuple[int, int | Tensor, int | Tensor]  # C, H, W; H and W are (B,) int64 where they differ


def _always(transform: Any) -> bool:
    return True


class Kernel(NamedTuple):
    """The batched form of one class of transforms.

    draw(transform, (C, H, W), draws) returns the parameters: (B, ...) tensors on the CPU, with the
    names of torchvision's ``make_params``. ``chosen`` (B,) bool: the samples that a transform with
    a probability changes.  apply(transform, images, parameters) returns new images (B, C, H, W),
    uint8 or float32, without waiting for their device. With the same parameters it equals
    torchvision's transform of each sample.  takes(transform) is false for arguments that are not
    supported; then the transform runs per sample.

    one(transform, image, parameters) does the same to one image (C, H, W) with its own parameters
    as numbers: for lists of images of different sizes, whose H and W in ``draw`` are then (B,), and
    images on the CPU that have, with their results, at least ``large`` values. It may return a
    view, and never changes ``image``.
    """

    draw: Callable[[Any, Any, Draws], Parameters]
    apply: Callable[[Any, Tensor, Parameters], Tensor]
    takes: Callable[[Any], bool] = _always
    one: Callable[[Any, Tensor, dict[str, Any]], Tensor] | None = None
    large: int = LARGE


def of_one(parameters: dict[str, Any]) -> Parameters:
    """The parameters of one sample as ``apply`` takes them, for a batch of this sample."""
    return {
        name: torch.tensor([value], dtype=torch.float64 if isinstance(value, float) else None)
        for name, value in parameters.items()
    }


def is_large(shape: Sequence[int], size: Sequence[int], least: int = LARGE) -> bool:
    """Whether an image of ``shape`` (C, H, W) and its result (C, *size) have ``least`` values."""
    channels, height, width = shape
    return channels * (height * width + size[0] * size[1]) >= least


def change(images: Tensor, chosen: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``images`` with those that are ``chosen`` replaced by ``function(chosen images, rows)``.

    chosen: (B,) bool on the CPU, so that counting them does not wait for a GPU.  function keeps the
    images' shape; rows (K,) int64 on the CPU are the positions of the chosen samples in the batch.
    """
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return images
    if len(rows) == len(images):
        return function(images, rows)
    places = rows.to(images.device, non_blocking=True)
    return images.index_copy(0, places, function(images.index_select(0, places), rows))
