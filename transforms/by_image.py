"""Transforms that run image by image, through several of them while the image is in the cache."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transforms.kernel import Kernel, is_large
from transforms.keyed import Draws
from transforms.memory import Images, collected


class Step(NamedTuple):
    """A transform with its kernel, which has the function ``one``, and its draws for the batch."""

    kernel: Kernel
    transform: Any
    draws: Draws


def goes_by_image(kernel: Kernel | None, transform: Any, images: Images) -> bool:
    """Whether a transform runs image by image: if sizes differ, and on large images on the CPU.

    Either way gives a sample the same bits: they depend on its shape, never on its batch.
    """
    if kernel is None or kernel.one is None:
        return False
    if isinstance(images, list) and len({image.shape for image in images}) > 1:
        return True
    some = images if isinstance(images, Tensor) else images[0][None]
    if some.ndim != 4 or not some.is_cpu:
        return False
    _, channels, height, width = some.shape
    size = _size_after(transform, height, width)
    return is_large((channels, height, width), size, kernel.large)


def run_by_image(steps: Sequence[Step], images: Images) -> Images:
    """Run ``steps`` one after the other on each of the images.

    The result is new memory if all results have one shape; else some may be views.
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.unbind(1)
    table: list[list[dict[str, Any]]] = []
    for kernel, transform, draws in steps:
        drawn = kernel.draw(transform, (images[0].shape[-3], height, width), draws)
        columns = [values.tolist() for values in drawn.values()]
        table.append([dict(zip(drawn, row, strict=True)) for row in zip(*columns, strict=True)])
        height, width = _size_after(transform, height, width)

    def results() -> Iterator[Tensor]:
        for image, *rows in zip(images, *table, strict=True):
            for step, parameters in zip(steps, rows, strict=True):
                assert step.kernel.one is not None
                image = step.kernel.one(step.transform, image, parameters)
            yield image

    return collected(results(), len(images))


def _size_after(transform: Any, height: Any, width: Any) -> tuple[Any, Any]:
    """Height and width after a crop; flips have no ``size`` and keep it."""
    size = vars(transform).get("size")  # hasattr of a module is slow
    return (height, width) if size is None else tuple(size)
