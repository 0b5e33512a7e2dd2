"""How the images of a batch lie in memory.

"Channels last" is the order (B, H, W, C) in memory, in which images are decoded.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

Images = Tensor | list[Tensor]  # one tensor, or a list where sizes differ
CHUNK = 2**19  # values that a CPU processes at once, so that temporaries stay in its cache


def is_channels_last(image: Tensor) -> bool:
    """Whether the channels of each pixel of an image (..., C, H, W) are neighbours in memory."""
    return image.ndim > 2 and image.shape[-3] > 1 and image.stride(-3) == 1


def empty_batch(count: int, image: Tensor) -> Tensor:
    """Memory (count, ...) for images of the shape and layout of ``image``."""
    last = is_channels_last(image)
    batch = image.new_empty((count, *(image.movedim(-3, -1) if last else image).shape))
    return batch.movedim(-1, -3) if last else batch


def stacked(images: Images) -> Images:
    """The images as one tensor if all have the same shape, else unchanged."""
    if isinstance(images, Tensor) or len({image.shape for image in images}) > 1:
        return images
    batch = empty_batch(len(images), images[0])
    if is_channels_last(images[0]):  # stack is fast only where the memory has the tensors' order
        torch.stack([image.movedim(-3, -1) for image in images], out=batch.movedim(-3, -1))
        return batch
    return torch.stack(images, out=batch)


def collected(images: Iterator[Tensor], count: int) -> Images:
    """As ``stacked``, of ``count`` images that are made and copied one after the other."""
    first = next(images)
    batch = empty_batch(count, first)
    batch[0] = first
    for row, image in enumerate(images, 1):
        if image.shape != first.shape:
            return [*(batch[:row].clone()), image, *images]
        batch[row] = image
    return batch
