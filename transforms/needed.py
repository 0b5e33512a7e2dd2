"""How many pixels of an image a pipeline needs, so that JPEGs can be decoded smaller."""

from collections.abc import Sequence
from typing import Any

import torchvision.transforms.v2 as v2

from transforms.own import Letterbox, Normalize, ToDtype, ToImage, ToTensor

# These do not count in pixels: what they do is the same for a smaller image.
_OF_ANY_SIZE = (
    v2.Grayscale,
    v2.RandomGrayscale,
    v2.ColorJitter,
    v2.RandomHorizontalFlip,
    v2.RandomVerticalFlip,
    Normalize,
    ToDtype,
    ToImage,
    ToTensor,
)


def needed_side(transforms: Sequence[Any]) -> int:
    """The pixels that the shorter side of an image needs for these transforms, 0 if all.

    They are twice the longer side that the first transform sets relative to the image: Resize,
    RandomResizedCrop or Letterbox. 0 if none does, or if one before it may count in pixels.
    """
    for transform in transforms:
        sides: list[int] = []
        if isinstance(transform, v2.Resize):
            sides = transform.size or [transform.max_size]
        elif isinstance(transform, v2.RandomResizedCrop):
            sides = transform.size
        elif isinstance(transform, Letterbox):
            sides = [transform.height, transform.width]
        if sides or not isinstance(transform, _OF_ANY_SIZE):
            return 2 * max(sides, default=0)
    return 0
