"""Some images of a split, as pictures to look at."""

import torch
from torch import Tensor

from trainer.loader import Part
from transforms.own import Normalize
from transforms.pipeline import Pipeline


def spread(count: int, most: int) -> Tensor:
    """At most ``most`` of 0..count-1 in even strides: folders come class by class."""
    if count <= most:
        return torch.arange(count)
    return torch.arange(most) * count // most


def one_crop(images: Tensor) -> Tensor:
    """The images (B, C, H, W) of a batch; of (B, crops, C, H, W) the first crop of each."""
    return images if images.ndim == 4 else images.flatten(1, -4)[:, 0]


def original_image(part: Part, row: int) -> Tensor:
    """An image of a part (C, H, W) uint8 as the dataset gives it."""
    return part.dataset.image(int(part.indices[row]))


def stored_image(part: Part, row: int) -> Tensor:
    """An image of a part (C, H, W) uint8 as it is kept, else as the dataset gives it."""
    if part.images is None:
        return original_image(part, row)
    image = part.images[row].cpu()
    return image if image.ndim == 3 else image.flatten(0, -4)[0]


def as_seen(pipeline: Pipeline, inputs: Tensor) -> Tensor:
    """Inputs (B, C, H, W) float of a model as pictures of 0-255 uint8, without Normalize.

    Other numbers than 0-1 are stretched to it. Of channels that are neither 1 nor 3, the first.
    """
    images = inputs
    for transform in reversed((*pipeline.fixed, *pipeline.rest)):
        if isinstance(transform, Normalize):
            images = images * transform.std.to(images.device) + transform.mean.to(images.device)
            break
    low, high = images.aminmax()
    if low < -0.01 or high > 1.01:
        images = (images - low) / (high - low)
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    return (images * 255).round().clamp(0, 255).byte()
