"""What a batched random transform is: parameters drawn per sample, then applied to all at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from transforms.keyed import Draws

Parameters = dict[str, Tensor]


def _always(transform: Any) -> bool:
    return True


class Kernel(NamedTuple):
    """The batched form of one class of transforms.

    draw(transform, (C, H, W), draws) gives the parameters: (B, ...) tensors on the CPU, named as
    torchvision's ``make_params`` names them; ``chosen`` (B,) bool tells where a transform with a
    probability acts at all.  apply(transform, images, parameters) changes images (B, C, H, W),
    uint8 or float32, and returns new ones, with no read-back from their device; given the same
    parameters it equals torchvision's transform of each sample.  takes(transform) is false for
    arguments that it cannot serve: such a transform runs per sample.
    """

    draw: Callable[[Any, tuple[int, int, int], Draws], Parameters]
    apply: Callable[[Any, Tensor, Parameters], Tensor]
    takes: Callable[[Any], bool] = _always


def change(images: Tensor, chosen: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``images`` with those that are ``chosen`` replaced by ``function(chosen images, rows)``.

    chosen: (B,) bool on the CPU, so that a device need not be asked how many they are.  function
    keeps the images' shape; rows (K,) int64 on the CPU are the chosen places in the batch.
    """
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return images
    if len(rows) == len(images):
        return function(images, rows)
    places = rows.to(images.device, non_blocking=True)
    return images.index_copy(0, places, function(images.index_select(0, places), rows))
